"""The model configuration: Hugging Face's Llama ``config.json`` plus the keys LUCID adds to it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import msgspec

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config_file import ConfigFile, checked, given_or, read_object, token_ids
from lucid_deploy.model.config_keys import ATTENTION_TYPES, LUCID_TYPES, check_keys
from lucid_deploy.model.layer_plan import LARGEST_WINDOW, WINDOW, with_layer_kinds
from lucid_deploy.model.rope_settings import ROPE_TYPES, Rope, RopeScaling, parse_rope
from lucid_deploy.plugins.table import DIAGONALS, UNIT

QK_NORMS = ("none", "after_rope", "before_rope")
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")
_GGUF = (
    " GGUF is not read: take the original checkpoint, or let transformers convert the file (gguf_file; docs/models.md "
    "has the lines)."
)
STATE_DTYPES = ("float32", "float16", "bfloat16")

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
# Keys whose null has a meaning of its own even where a family has a default: no window, as many key/value heads as
# query heads, heads that share the width, untied embeddings.
_MEANINGFUL_NULLS = frozenset(("sliding_window", "num_key_value_heads", "head_dim", "tie_word_embeddings"))
# Fields that artifacts of earlier versions lack; the defaults are the earlier behaviour.
_ADDED = frozenset(
    (
        "qk_norm",
        "layer_kinds",
        "layer_settings",
        "family",
        "hidden_act",
        "attention_output_bias",
        "sliding_window",
        "rope_layers",
        "diagonal",
        "rotary_width",
        "attention_gate",
        "state_dtype",
        "class_config",
        "class_layers",
        "attention",
        "softcap",
    )
)
# Fields of artifacts of earlier versions, from when Granite, Gemma 3 and others had code here; their graphs have them.
_GONE = frozenset(
    ("attention_scale", "embedding_multiplier", "residual_multiplier", "logits_divisor", "window_rope_theta")
)


@dataclass(frozen=True)
class AttentionShape:
    """The attention of one layer of a class of transformers.

    Attributes:
        heads: Query heads.
        kv_heads: Key/value heads.
        head_dim: Width of a head.
        scale: Factor of the scores before the softmax.
        window: How many tokens, itself included, a token sees; None: all before it.
        softcap: The scores s become softcap · tanh(s / softcap); None: they stay.
        weights: Names of the weights of the module that calls attention, without the layer's prefix.
        like: The first layer that computes the same from its weights, counted from 0.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    weights: tuple[str, ...] = ()
    like: int = 0


@dataclass(frozen=True)
class LucidConfig:
    """Shape and variant of one model. Field names are those of Hugging Face's ``LlamaConfig``.

    Attributes:
        attention_type: ``lucid`` (``oglucid`` is an older spelling of the same) or ``llama`` (standard attention).
        head_dim: Width of one head; need not be ``hidden_size / num_attention_heads``.
        use_rope: Whether queries and keys are rotated. LUCID models exist without any position encoding.
        eos_token_ids: Tokens that end a generation; may be empty.
        layer_kinds: The kind of every layer; empty: ``attention_type`` applies to all.
        layer_settings: Settings of kinds of layers beyond Llama's, plain data by kind.
        qk_norm: ``none``, or ``after_rope`` or ``before_rope``: queries and keys go through RMS norms with weights of
            width ``head_dim``, ``q_norm`` and ``k_norm``, after rotation or before it. The cache holds the normed keys.
        family: The model family, see :mod:`lucid_deploy.model.families`.
        hidden_act: The MLPs' activation, ``silu`` or ``gelu_pytorch_tanh``.
        attention_output_bias: Whether ``o_proj`` has a bias; None: as the other projections.
        sliding_window: How many tokens, itself included, a token sees in window layers.
        rope_layers: Which layers rotate; empty: all.
        diagonal: The diagonal entry of row i of the solve: ``unit`` is 1, ``training`` follows the formula,
            exp(√d(m/(m + eps) − 1)) with m the mean square of key i. Not a key of ``config.json``.
        rotary_width: How many of the first elements of each head are rotated; None: all.
        attention_gate: Whether the output of attention is multiplied by the sigmoid of a projection, ``g_proj``.
        state_dtype: Type of recurrent states in a cache, ``float32`` or the exported model's; float64 in a float64
            model. Not a key of ``config.json``.
        class_config: The keys of ``config.json`` for the class of transformers that computes the model; empty: a
            family of ours does.
        class_layers: Which layers of that class there are; empty: all.
        attention: The attention of each of its layers; empty for a family of ours.
        softcap: As :attr:`AttentionShape.softcap`.
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
    qk_norm: str = "none"
    family: str = "llama"
    hidden_act: str = "silu"
    attention_output_bias: bool | None = None
    sliding_window: int | None = None
    rope_layers: tuple[bool, ...] = ()
    diagonal: str = UNIT
    rotary_width: int | None = None
    attention_gate: bool = False
    state_dtype: str = "float32"
    class_config: dict[str, Any] = field(default_factory=dict)
    class_layers: tuple[int, ...] = ()
    attention: tuple[AttentionShape, ...] = ()
    softcap: float | None = None

    def of_layer(self, index: int) -> LucidConfig:
        """Return the configuration whose heads, window and soft cap are those of one layer."""
        if not self.attention:
            return self
        own = self.attention[index]
        return replace(
            self,
            num_attention_heads=own.heads,
            num_key_value_heads=own.kv_heads,
            head_dim=own.head_dim,
            sliding_window=own.window,
            softcap=own.softcap,
        )

    def rope(self, index: int) -> Rope | None:
        """Return the rotary settings of a layer; None: no rotation."""
        if self.class_config or not self.use_rope or (self.rope_layers and not self.rope_layers[index]):
            return None
        return Rope(self.rope_theta, self.rope_scaling)

    @property
    def has_narrow_states(self) -> bool:
        """Whether recurrent states are rounded between calls; they are computed in at least float32."""
        return self.state_dtype != "float32"

    @property
    def rotated(self) -> int:
        """How many elements of each head are rotated in layers with rotary positions."""
        return self.head_dim if self.rotary_width is None else self.rotary_width

    @property
    def has_output_bias(self) -> bool:
        """Whether attention's ``o_proj`` has a bias."""
        return self.attention_bias if self.attention_output_bias is None else self.attention_output_bias

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
        """Return the sizes by the names of transformers' ``LlamaConfig``."""
        return {name: getattr(self, name) for name in _SIZES}

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that :meth:`from_dict` turns back into an equal configuration."""
        data = asdict(self)
        for name in ("eos_token_ids", "layer_kinds", "rope_layers", "class_layers"):
            data[name] = list(data[name])
        data["attention"] = [{**item, "weights": list(item["weights"])} for item in data["attention"]]
        return data

    @classmethod
    def added_defaults(cls) -> dict[str, Any]:
        """Return the fields that artifacts of earlier versions lack, with the defaults for them."""
        return {name: getattr(cls, name, {}) for name in _ADDED}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LucidConfig:
        """Rebuild a configuration from :meth:`to_dict` (not from a checkpoint's ``config.json``).

        Raises:
            KeyError, TypeError, ValueError: A field is missing, unknown, of another type, or impossible.
        """
        names = {item.name for item in fields(cls)}
        data = {name: value for name, value in data.items() if name not in _GONE}
        if names - _ADDED - data.keys() or data.keys() - names:
            raise KeyError(f"fields {', '.join(sorted((names - _ADDED - data.keys()) | (data.keys() - names)))}")
        config = msgspec.convert(data, cls)
        for name in _SIZES:
            if not 0 < getattr(config, name) <= _LARGEST.get(name, 2**20):
                raise ValueError(f"{name} is {getattr(config, name)}")
        if not (config.rms_norm_eps > 0 and config.rope_theta > 0):
            raise ValueError(f"rms_norm_eps is {config.rms_norm_eps}, rope_theta {config.rope_theta}")
        if config.attention_type not in ATTENTION_TYPES or config.rope_scaling.rope_type not in ROPE_TYPES:
            raise ValueError(f"attention_type {config.attention_type!r} with {config.rope_scaling.rope_type!r} rope")
        if len(config.kinds) != config.num_hidden_layers or not isinstance(config.layer_settings, dict):
            raise ValueError(f"layer_kinds are {config.layer_kinds} for {config.num_hidden_layers} layers")
        if config.qk_norm not in QK_NORMS or config.hidden_act not in ACTIVATIONS:
            raise ValueError(f"qk_norm is {config.qk_norm!r}, hidden_act {config.hidden_act!r}")
        if config.diagonal not in DIAGONALS:
            raise ValueError(f"diagonal is {config.diagonal!r}")
        if config.rotary_width is not None and not 0 < config.rotary_width <= config.head_dim:
            raise ValueError(f"rotary_width is {config.rotary_width} of heads of {config.head_dim}")
        if config.state_dtype not in STATE_DTYPES:
            raise ValueError(f"state_dtype is {config.state_dtype!r}")
        if config.rope_layers and len(config.rope_layers) != config.num_hidden_layers:
            raise ValueError(f"rope_layers are {config.rope_layers} for {config.num_hidden_layers} layers")
        if len(config.attention) not in (0, config.num_hidden_layers) or bool(config.attention) != bool(
            config.class_config
        ):
            raise ValueError(f"attention describes {len(config.attention)} of {config.num_hidden_layers} layers")
        if WINDOW in config.kinds and not 0 < (config.sliding_window or 0) <= LARGEST_WINDOW:
            raise ValueError(f"sliding_window is {config.sliding_window}")
        tokens = [token for token in (config.bos_token_id, *config.eos_token_ids) if token is not None]
        if any(not 0 <= token < config.vocab_size for token in tokens):
            raise ValueError(f"bos and eos tokens are {tokens}, with a vocabulary of {config.vocab_size}")
        return config


def load_config(directory: Path, assume_unused: Collection[str] = ()) -> LucidConfig:
    """Read ``config.json`` of a checkpoint.

    Args:
        directory: The checkpoint.
        assume_unused: As :func:`parse_config`.

    Raises:
        LucidError: No directory, no file, not JSON, or as :func:`parse_config`.
    """
    return parse_config(read_config(directory), str(directory / "config.json"), assume_unused)


def read_config(directory: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's ``config.json``, unchecked.

    Raises:
        LucidError: No directory, no file, or no JSON object in it.
    """
    if not directory.exists():
        raise LucidError(f"There is no checkpoint at {directory}: the directory does not exist.")
    if not directory.is_dir():
        is_gguf = directory.suffix == ".gguf"
        raise LucidError(
            f"{directory} is a file; a checkpoint is a directory with config.json and *.safetensors."
            f"{_GGUF if is_gguf else ''}"
        )
    path = directory / "config.json"
    if not path.is_file():
        is_gguf = any(directory.glob("*.gguf"))
        raise LucidError(
            f"{directory} has no config.json; a checkpoint needs config.json and *.safetensors."
            f"{_GGUF if is_gguf else ''}"
        )
    return read_object(path)


def parse_config(raw: dict[str, Any], where: str, assume_unused: Collection[str] = ()) -> LucidConfig:
    """Check the content of a checkpoint's ``config.json`` and turn it into a :class:`LucidConfig`.

    What only the tensors show is decided by :func:`lucid_deploy.model.variants.settle`.

    Args:
        raw: The parsed JSON object.
        where: Name of the file, for messages.
        assume_unused: Unknown keys that the user declares to have no effect.

    Raises:
        LucidError: An unsupported model, an unknown or unsupported key, a missing or impossible value.
    """
    family = check_keys(raw, where, assume_unused)
    raw = family.normalized(raw, where)
    absent = [key for key in family.defaults if key not in raw or (raw[key] is None and key not in _MEANINGFUL_NULLS)]
    given = {**raw, **{key: family.defaults[key] for key in absent}}
    file = checked(given, ConfigFile, where)
    _refuse_variants(file, where)
    theta, scaling = parse_rope(file, where)
    config = LucidConfig(
        vocab_size=file.vocab_size,
        hidden_size=file.hidden_size,
        intermediate_size=file.intermediate_size,
        num_hidden_layers=file.num_hidden_layers,
        num_attention_heads=file.num_attention_heads,
        num_key_value_heads=given_or(file.num_key_value_heads, file.num_attention_heads),
        head_dim=given_or(file.head_dim, file.hidden_size // file.num_attention_heads),
        rms_norm_eps=file.rms_norm_eps,
        max_position_embeddings=file.max_position_embeddings,
        attention_type=file.attention_type,
        use_rope=file.use_rope,
        rope_theta=theta,
        rope_scaling=scaling,
        tie_word_embeddings=file.tie_word_embeddings,
        attention_bias=file.attention_bias,
        mlp_bias=file.mlp_bias,
        bos_token_id=next(iter(token_ids(file.bos_token_id)), None),
        eos_token_ids=token_ids(file.eos_token_id),
        layer_kinds=tuple(file.layer_kinds),
        layer_settings=file.layer_settings,
        family=family.model_type,
        hidden_act="silu" if file.hidden_act == "swish" else file.hidden_act,
    )
    config = family.configure(config, checked(given, family.keys, where), where)
    config = with_layer_kinds(config, given, family, where)
    check_shape(config, where)
    return config


def check_shape(config: LucidConfig, where: str) -> None:
    """Refuse sizes and tokens that do not fit together."""
    beyond = [token for token in (config.bos_token_id, *config.eos_token_ids) if (token or 0) >= config.vocab_size]
    if beyond:
        raise LucidError(
            f"{where}: token {beyond[0]}, a bos_token_id or eos_token_id, is outside the vocabulary (0 to "
            f"{config.vocab_size - 1})."
        )
    if config.head_dim == 0:
        raise LucidError(
            f"{where}: hidden_size ({config.hidden_size}) is below num_attention_heads ({config.num_attention_heads})."
        )
    if config.num_attention_heads % config.num_key_value_heads:
        raise LucidError(
            f"{where}: num_attention_heads ({config.num_attention_heads}) is not a multiple of num_key_value_heads "
            f"({config.num_key_value_heads})."
        )
    if len(config.kinds) != config.num_hidden_layers:
        raise LucidError(
            f"{where}: layer_kinds names {len(config.layer_kinds)} layers, num_hidden_layers is "
            f"{config.num_hidden_layers}."
        )
    if config.use_rope and config.rotated % 2:
        what = "head_dim" if config.rotary_width is None else "part of each head"
        raise LucidError(f"{where}: rotary positions need an even {what}, not {config.rotated}.")


def _refuse_variants(file: ConfigFile, where: str) -> None:
    if file.which_rmsnorm != "exp_k_norm":
        raise LucidError(f"{where}: which_rmsnorm {file.which_rmsnorm!r} is not supported; only exp_k_norm is.")
    if file.hidden_act not in (*ACTIVATIONS, "swish"):
        raise LucidError(
            f"{where}: hidden_act {file.hidden_act!r} is not supported; supported are {', '.join(ACTIVATIONS)}."
        )
