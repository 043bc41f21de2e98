"""Read ``config.json``: parse the JSON, and check the types and ranges of the supported keys strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from lucid_deploy.errors import LucidError, reading
from lucid_deploy.json_fields import finite
from lucid_deploy.model.config import Context, LayerCount, Positive, Size

Whole = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Indices = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(description="a list of layers, counted from 0")]
_Token = Annotated[int, Meta(ge=0)]
Tokens = _Token | list[_Token]


class ConfigFile(msgspec.Struct, kw_only=True, frozen=True):
    """The supported keys of Llama and LUCID; defaults are ``LlamaConfig``'s, but without bos and eos tokens."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: LayerCount
    num_attention_heads: Size
    num_key_value_heads: Size | UnsetType = UNSET  # unset: num_attention_heads
    head_dim: Size | UnsetType = UNSET  # unset: hidden_size // num_attention_heads
    rms_norm_eps: Positive = 1e-6
    max_position_embeddings: Context = 2048
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    hidden_act: str = "silu"
    rope_theta: Positive = 10000.0
    rope_scaling: dict[str, Any] = {}
    rope_parameters: dict[str, Any] = {}
    bos_token_id: Tokens = []
    eos_token_id: Tokens = []
    # LUCID's keys.
    attention_type: str = "llama"
    which_rmsnorm: str = "exp_k_norm"
    use_rope: bool = True
    use_beta: bool = False
    use_qknorm: bool | UnsetType = UNSET  # unset: inferred from the checkpoint's tensors
    # The kind of each layer, and the settings of those kinds beyond Llama's.
    layer_kinds: list[str] = []
    layer_settings: dict[str, Any] = {}


class LayerKeys(msgspec.Struct, kw_only=True, frozen=True):
    """The keys that say which layers use LUCID attention and which use sliding-window attention."""

    sliding_window: Size | None = None
    layer_types: list[str] | None = None
    lucid_layers: Indices | None = None


class RopeBlock(msgspec.Struct, kw_only=True, frozen=True):
    """The object ``rope_scaling`` (transformers 4) or ``rope_parameters`` (5)."""

    rope_type: str | UnsetType = UNSET
    type: str | UnsetType = UNSET
    rope_theta: Positive | UnsetType = UNSET
    factor: Positive | UnsetType = UNSET
    low_freq_factor: Positive | UnsetType = UNSET
    high_freq_factor: Positive | UnsetType = UNSET
    original_max_position_embeddings: Context | UnsetType = UNSET


class GenerationFile(msgspec.Struct, kw_only=True, frozen=True):
    """The supported key of ``generation_config.json``: the end-of-sequence tokens."""

    eos_token_id: Tokens = []


_Form = TypeVar("_Form", bound=msgspec.Struct)


def read_config(directory: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's ``config.json``, unchecked."""
    path = directory / "config.json"
    if not directory.exists():
        raise LucidError(f"There is no checkpoint at {directory}: the directory does not exist.")
    if not directory.is_dir():
        raise LucidError(f"{directory} is a file; a checkpoint is a directory with config.json and *.safetensors.")
    if not path.is_file():
        raise LucidError(f"{directory} has no config.json; a checkpoint needs config.json and *.safetensors.")
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    with reading(path):
        content = path.read_bytes()
    try:
        raw = finite(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number that is not finite
        raise LucidError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise LucidError(f"{path} holds a JSON {type(raw).__name__}; it must hold an object.")
    return raw


def checked(values: dict[str, Any], form: type[_Form], where: str) -> _Form:
    """Convert values to a struct. None counts as absent; unknown keys are ignored, unless the struct forbids them."""
    given = {key: value for key, value in values.items() if value is not None}
    try:
        return msgspec.convert(given, form)
    except msgspec.ValidationError as error:
        raise LucidError(f"{where}: {error}.") from error


def given_or(value: Any, default: Any) -> Any:
    """Return a key's value, or the default if the file does not have the key."""
    return default if value is UNSET else value


def token_ids(tokens: int | list[int]) -> tuple[int, ...]:
    """Return a token id or a list of them as a tuple."""
    return tuple(tokens) if isinstance(tokens, list) else (tokens,)
