"""The model configuration: Hugging Face's Llama ``config.json`` plus the keys LUCID adds to it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from lucid_deploy.errors import LucidError

LUCID_TYPES = ("lucid", "oglucid")
ATTENTION_TYPES = (*LUCID_TYPES, "llama")
ROPE_TYPES = ("default", "linear", "llama3")

# What a Llama config.json leaves out, transformers fills in with these.
_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_rope": True,
    "attention_type": "llama",
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)
# Sizes above these (2²⁰ for those not listed) are mistakes, and would only show as exhausted memory or overflow later.
_LARGEST = {
    "num_hidden_layers": 10_000,
    "max_position_embeddings": 2**31 - 1,
    "original_max_position_embeddings": 2**31 - 1,
}


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are changed for longer contexts, in transformers' terms.

    Attributes:
        rope_type: ``default`` (unchanged), ``linear`` (all divided by ``factor``) or ``llama3`` (low ones divided,
            high ones kept, a ramp between).
        factor: The divisor.
        low_freq_factor: ``llama3`` only: wavelengths above original context / this are divided.
        high_freq_factor: ``llama3`` only: wavelengths below original context / this are kept.
        original_max_position_embeddings: ``llama3`` only: the context length before scaling, in tokens.
    """

    rope_type: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


@dataclass(frozen=True)
class LucidConfig:
    """Shape and variant of one model. Field names are those of Hugging Face's ``LlamaConfig``.

    Attributes:
        attention_type: ``lucid`` (``oglucid`` is an older spelling of the same) or ``llama`` (standard attention).
        head_dim: Width of one head; need not be ``hidden_size / num_attention_heads``.
        use_rope: Whether queries and keys are rotated. LUCID models exist without any position encoding.
        eos_token_ids: Tokens that end a generation; may be empty.
        layer_kinds: The kind of every layer; empty: all are what ``attention_type`` says.
        layer_settings: What kinds of layers need beyond Llama's settings, plain data by name.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    attention_type: str = "lucid"
    use_rope: bool = True
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling = field(default_factory=RopeScaling)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    layer_kinds: tuple[str, ...] = ()
    layer_settings: dict[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of every layer, first to last, see :mod:`lucid_deploy.model.layers`."""
        return self.layer_kinds or ("lucid" if self.is_lucid else "standard",) * self.num_hidden_layers

    @property
    def is_lucid(self) -> bool:
        """Whether values are preconditioned; False is standard attention."""
        return self.attention_type in LUCID_TYPES

    @property
    def query_groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.num_key_value_heads

    def llama_sizes(self) -> dict[str, Any]:
        """Return the shape for a model of transformers, by the names of its ``LlamaConfig``."""
        return {name: getattr(self, name) for name in _SIZES}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_dict` turns back into an equal configuration."""
        data = asdict(self)
        data["eos_token_ids"], data["layer_kinds"] = list(self.eos_token_ids), list(self.layer_kinds)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LucidConfig:
        """Rebuild a configuration from :meth:`to_dict` (not from a checkpoint's ``config.json``).

        Raises:
            KeyError, TypeError, ValueError: A field is missing, unknown, of another type, or impossible.
        """
        values = dict(data)
        values["rope_scaling"] = _typed(RopeScaling, dict(values["rope_scaling"]))
        values["eos_token_ids"] = tuple(values["eos_token_ids"])
        values["layer_kinds"] = tuple(values.get("layer_kinds", ()))
        config = _typed(cls, values)
        for name in _SIZES:
            if not 0 < getattr(config, name) <= _LARGEST.get(name, 2**20):
                raise ValueError(f"{name} is {getattr(config, name)}")
        if config.attention_type not in ATTENTION_TYPES or config.rope_scaling.rope_type not in ROPE_TYPES:
            raise ValueError(f"attention_type {config.attention_type!r} with {config.rope_scaling.rope_type!r} rope")
        if len(config.kinds) != config.num_hidden_layers or not isinstance(config.layer_settings, dict):
            raise ValueError(f"layer_kinds are {config.layer_kinds} for {config.num_hidden_layers} layers")
        tokens = [token for token in (config.bos_token_id, *config.eos_token_ids) if token is not None]
        if any(type(token) is not int or not 0 <= token < config.vocab_size for token in tokens):
            raise ValueError(f"bos and eos tokens are {tokens}, with a vocabulary of {config.vocab_size}")
        return config


_Fields = TypeVar("_Fields", RopeScaling, LucidConfig)


def _typed(kind: type[_Fields], values: dict[str, Any]) -> _Fields:
    """Make a dataclass of plain values whose types are those of its fields.

    Raises:
        KeyError, TypeError: A field is missing, unknown or of another type.
    """
    for item in fields(kind):
        if item.type in ("int", "float", "bool", "str") and type(values[item.name]).__name__ != item.type:
            raise TypeError(f"{item.name} is {values[item.name]!r}, not of type {item.type}")
    return kind(**values)


def load_config(directory: Path) -> LucidConfig:
    """Read ``config.json`` of a checkpoint.

    Args:
        directory: The checkpoint.

    Raises:
        LucidError: No directory, no file, not JSON, a missing or impossible value, or an unsupported variant.
    """
    if not directory.exists():
        raise LucidError(f"There is no checkpoint at {directory}: the directory does not exist.")
    if not directory.is_dir():
        raise LucidError(f"{directory} is a file; a checkpoint is a directory with config.json and *.safetensors.")
    path = directory / "config.json"
    if not path.is_file():
        raise LucidError(f"{directory} has no config.json; a checkpoint needs config.json and *.safetensors.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise LucidError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise LucidError(f"{path} holds a JSON {type(raw).__name__}; a configuration is an object.")
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], where: str) -> LucidConfig:
    """Check the content of a checkpoint's ``config.json`` and turn it into a :class:`LucidConfig`.

    Args:
        raw: The parsed JSON object.
        where: Name of the file, for messages.

    Raises:
        LucidError: As :func:`load_config`.
    """
    values = {**_DEFAULTS, **{key: value for key, value in raw.items() if value is not None}}
    _refuse_variants(values, where)
    heads = _positive_int(values, "num_attention_heads", where)
    hidden = _positive_int(values, "hidden_size", where)
    values.setdefault("num_key_value_heads", heads)
    values.setdefault("head_dim", hidden // heads)
    theta, scaling = _parse_rope(values, where)
    config = LucidConfig(
        vocab_size=_positive_int(values, "vocab_size", where),
        hidden_size=hidden,
        intermediate_size=_positive_int(values, "intermediate_size", where),
        num_hidden_layers=_positive_int(values, "num_hidden_layers", where),
        num_attention_heads=heads,
        num_key_value_heads=_positive_int(values, "num_key_value_heads", where),
        head_dim=_positive_int(values, "head_dim", where),
        rms_norm_eps=_positive_float(values, "rms_norm_eps", where),
        max_position_embeddings=_positive_int(values, "max_position_embeddings", where),
        attention_type=values["attention_type"],
        use_rope=_boolean(values, "use_rope", where),
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=_boolean(values, "tie_word_embeddings", where),
        attention_bias=_boolean(values, "attention_bias", where),
        mlp_bias=_boolean(values, "mlp_bias", where),
        bos_token_id=next(iter(_token_ids(values, "bos_token_id", where)), None),
        eos_token_ids=_token_ids(values, "eos_token_id", where),
    )
    beyond = [token for token in (config.bos_token_id, *config.eos_token_ids) if (token or 0) >= config.vocab_size]
    if beyond:
        raise LucidError(
            f"{where}: token {beyond[0]}, a bos_token_id or eos_token_id, is outside the vocabulary (0 to "
            f"{config.vocab_size - 1})."
        )
    if heads % config.num_key_value_heads:
        raise LucidError(
            f"{where}: num_attention_heads ({heads}) is not a multiple of num_key_value_heads "
            f"({config.num_key_value_heads})."
        )
    if config.use_rope and config.head_dim % 2:
        raise LucidError(f"{where}: rotary positions need an even head_dim, not {config.head_dim}.")
    return config


def _refuse_variants(values: dict[str, Any], where: str) -> None:
    attention = values["attention_type"]
    if attention not in ATTENTION_TYPES:
        raise LucidError(
            f"{where}: attention_type {attention!r} is not supported; supported are {', '.join(ATTENTION_TYPES)}."
        )
    norm = values.get("which_rmsnorm", "exp_k_norm")
    if attention in LUCID_TYPES and norm != "exp_k_norm":
        raise LucidError(f"{where}: which_rmsnorm {norm!r} is not supported; only exp_k_norm is.")
    for variant in ("use_beta", "use_forget_gate"):
        if values.get(variant):
            raise LucidError(
                f"{where}: {variant} is set; this variant of LUCID has extra tensors and is not supported."
            )
    if values.get("sliding_window") and values.get("use_sliding_window", True):
        raise LucidError(
            f"{where}: sliding_window is {values['sliding_window']!r}. Attention over a window is another model, which "
            "is not supported. Remove the key if the model was trained without it."
        )
    activation = values.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise LucidError(f"{where}: hidden_act {activation!r} is not supported; only silu is.")


def _parse_rope(values: dict[str, Any], where: str) -> tuple[float, RopeScaling]:
    """Read both spellings: ``rope_theta`` + ``rope_scaling`` (transformers 4), ``rope_parameters`` (transformers 5)."""
    block = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if not isinstance(block, dict):
        raise LucidError(f"{where}: rope settings must be an object, not {type(block).__name__}.")
    block = {key: value for key, value in block.items() if value is not None}
    source = {**values, **block}
    theta = _positive_float(source, "rope_theta", where) if "rope_theta" in source else 10000.0
    kind = block.get("rope_type", block.get("type", "default"))
    if kind not in ROPE_TYPES:
        raise LucidError(f"{where}: rope_scaling {kind!r} is not supported; supported are {', '.join(ROPE_TYPES)}.")
    if source.get("partial_rotary_factor", 1.0) != 1.0:
        raise LucidError(f"{where}: partial_rotary_factor is not supported; only full rotary embeddings are.")
    if kind == "default":
        return theta, RopeScaling()
    factor = _positive_float(block, "factor", where)
    if kind == "linear":
        return theta, RopeScaling("linear", factor)
    low, high = _positive_float(block, "low_freq_factor", where), _positive_float(block, "high_freq_factor", where)
    if low >= high:
        raise LucidError(f"{where}: low_freq_factor ({low}) must be below high_freq_factor ({high}).")
    original = _positive_int(block, "original_max_position_embeddings", where)
    return theta, RopeScaling("llama3", factor, low, high, original)


def _required(values: dict[str, Any], key: str, where: str) -> Any:
    if key not in values:
        raise LucidError(f"{where}: {key} is missing.")
    return values[key]


def _positive_int(values: dict[str, Any], key: str, where: str) -> int:
    value = _required(values, key, where)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise LucidError(f"{where}: {key} must be a positive whole number, not {value!r}.")
    if value > (largest := _LARGEST.get(key, 2**20)):
        raise LucidError(f"{where}: {key} is {value}; more than {largest} is not supported.")
    return value


def _positive_float(values: dict[str, Any], key: str, where: str) -> float:
    value = _required(values, key, where)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise LucidError(f"{where}: {key} must be a positive number, not {value!r}.")
    return float(value)


def _boolean(values: dict[str, Any], key: str, where: str) -> bool:
    value = _required(values, key, where)
    if not isinstance(value, bool):
        raise LucidError(f"{where}: {key} must be true or false, not {value!r}.")
    return value


def _token_ids(values: dict[str, Any], key: str, where: str) -> tuple[int, ...]:
    """Read a token id or a list of them; nothing, null and an empty list are none."""
    value = values.get(key, [])
    ids = value if isinstance(value, list) else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in ids):
        raise LucidError(
            f"{where}: {key} must be a token id or a list of them, not {value!r}. Write [] or null if there is none."
        )
    return tuple(ids)
