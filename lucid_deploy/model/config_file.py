"""``config.json`` as a file: JSON, and the keys that are read, with types and ranges checked strictly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Meta, UnsetType

from lucid_deploy.errors import LucidError, reading
from lucid_deploy.json_fields import finite
from lucid_deploy.model.config import Context, Layers, Positive, Size

Whole = Annotated[int, Meta(ge=0, le=2**31 - 1, description="a whole number")]
Turns = Annotated[float, Meta(ge=1e-9, le=1e9, description="a number between 1e-9 and 1e9")]
Flag = Annotated[bool, Meta(description="true or false")]
Text = Annotated[str, Meta(description="a string")]
Block = Annotated[dict[str, Any], Meta(description="an object")]
Names = Annotated[list[str], Meta(description="a list of names")]
Indices = Annotated[list[Annotated[int, Meta(ge=0)]], Meta(description="a list of layers, counted from 0")]
_Token = Annotated[int, Meta(ge=0)]
Tokens = Annotated[_Token | list[_Token], Meta(description="a token id or a list of them")]


class ConfigFile(msgspec.Struct, kw_only=True, frozen=True):
    """The supported keys of ``config.json``, with the defaults of transformers' ``LlamaConfig``."""

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Layers
    num_attention_heads: Size
    num_key_value_heads: Size | UnsetType = UNSET  # as many as num_attention_heads
    head_dim: Size | UnsetType = UNSET  # hidden_size // num_attention_heads
    rms_norm_eps: Positive = 1e-6
    max_position_embeddings: Context = 2048
    tie_word_embeddings: Flag = False
    attention_bias: Flag = False
    mlp_bias: Flag = False
    hidden_act: Text = "silu"
    rope_theta: Positive = 10000.0
    rope_scaling: Block = {}
    rope_parameters: Block = {}
    bos_token_id: Tokens = []
    eos_token_id: Tokens = []
    # LUCID's keys.
    attention_type: Text = "llama"
    which_rmsnorm: Text = "exp_k_norm"
    use_rope: Flag = True
    use_beta: Flag = False
    use_qknorm: Flag | UnsetType = UNSET  # the tensors say
    # One kind a layer, and what those kinds need beyond Llama's settings.
    layer_kinds: Names = []
    layer_settings: Block = {}


class LayerKeys(msgspec.Struct, kw_only=True, frozen=True):
    """The keys that say which layers are LUCID and which attend over a window."""

    sliding_window: Size | None = None
    layer_types: Names | None = None
    lucid_layers: Indices | None = None


class RopeBlock(msgspec.Struct, kw_only=True, frozen=True):
    """The object ``rope_scaling`` (transformers 4) or ``rope_parameters`` (5)."""

    rope_type: Text | UnsetType = UNSET
    type: Text | UnsetType = UNSET
    rope_theta: Positive | UnsetType = UNSET
    factor: Positive | UnsetType = UNSET
    low_freq_factor: Positive | UnsetType = UNSET
    high_freq_factor: Positive | UnsetType = UNSET
    original_max_position_embeddings: Context | UnsetType = UNSET
    # yarn
    attention_factor: Positive | UnsetType = UNSET
    mscale: Positive | UnsetType = UNSET
    mscale_all_dim: Positive | UnsetType = UNSET
    beta_fast: Turns = 32.0
    beta_slow: Turns = 1.0
    truncate: Flag = True


class GenerationFile(msgspec.Struct, kw_only=True, frozen=True):
    """The supported key of ``generation_config.json``: the tokens that end a text."""

    eos_token_id: Tokens = []


_Form = TypeVar("_Form", bound=msgspec.Struct)
_GGUF = (
    " GGUF is not read: take the original checkpoint, or let transformers convert the file (gguf_file; docs/models.md "
    "has the lines)."
)


def read_config(directory: Path) -> dict[str, Any]:
    """Return the content of a checkpoint's ``config.json``, unchecked."""
    path = directory / "config.json"
    if not directory.exists():
        raise LucidError(f"There is no checkpoint at {directory}: the directory does not exist.")
    if not directory.is_dir():
        gguf = _GGUF if directory.suffix == ".gguf" else ""
        raise LucidError(
            f"{directory} is a file; a checkpoint is a directory with config.json and *.safetensors.{gguf}"
        )
    if not path.is_file():
        gguf = _GGUF if any(directory.glob("*.gguf")) else ""
        raise LucidError(f"{directory} has no config.json; a checkpoint needs config.json and *.safetensors.{gguf}")
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object."""
    with reading(path):
        content = path.read_bytes()
    try:
        raw = finite(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or a number beyond all bounds
        raise LucidError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(raw, dict):
        raise LucidError(f"{path} holds a JSON {type(raw).__name__}; a configuration is an object.")
    return raw


def checked(values: dict[str, Any], form: type[_Form], where: str) -> _Form:
    """Convert values to a struct. Null counts as absent; keys that the struct lacks are left out."""
    given = {key: value for key, value in values.items() if value is not None}
    try:
        return msgspec.convert(given, form)
    except msgspec.ValidationError as error:
        raise LucidError(f"{where}: {_reason(str(error), given, form)}") from error


def given_or(value: Any, default: Any) -> Any:
    """Return a key's value, or the default where the file leaves it out."""
    return default if value is UNSET else value


def token_ids(tokens: int | list[int]) -> tuple[int, ...]:
    """Return a token id or a list of them as a tuple."""
    return tuple(tokens) if isinstance(tokens, list) else (tokens,)


def _reason(message: str, values: dict[str, Any], form: type[msgspec.Struct]) -> str:
    """Rephrase msgspec's message, which names the field, with the description of the field's type."""
    missing = re.search(r"missing required field `(\w+)`", message)
    if missing:
        return f"{missing[1]} is missing."
    unknown = re.search(r"unknown field `(.*)`", message)
    if unknown:
        return f"{unknown[1]} is not known; known are {', '.join(form.__struct_fields__)}."
    key = re.search(r"`\$\.(\w+)", message)[1]  # type: ignore[index]
    value, metas = values[key], list(_metas(get_type_hints(form, include_extras=True)[key]))
    expected = re.search(r"Expected `([^`]+)`", message)  # a family's key may have no description
    wanted = next((meta.description for meta in metas if meta.description), f"of type {expected and expected[1]}")
    largest = next((meta.le for meta in metas if meta.le), None)
    if type(value) is int and largest is not None and value > largest:
        return f"{key} is {value}; more than {largest} is not supported."
    none = " Write [] or null if there is none." if "token" in key else ""
    return f"{key} must be {wanted}, not {value!r}.{none}"


def _metas(annotation: Any) -> Iterator[Meta]:
    """Yield the constraints inside an annotation, the outermost first."""
    for part in getattr(annotation, "__metadata__", ()):
        yield part
    for part in get_args(annotation):
        yield from _metas(part)
