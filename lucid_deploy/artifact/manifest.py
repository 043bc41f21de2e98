"""The manifest ``lucid.json``: what an artifact contains.

``docs/schemas/lucid.schema.json`` describes the same as a JSON schema: change both together. A test compares them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
from msgspec import Meta

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.cache.storage import CACHE_DTYPES
from lucid_deploy.errors import LucidError, reading
from lucid_deploy.json_fields import finite
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription

MANIFEST = "lucid.json"
WEIGHTS = "weights.bin"
ADAPTERS = "adapters.bin"  # LoRA adapters that rows of a batch choose; see lucid_deploy.artifact.adapters
FORMAT, FORMAT_VERSION = "lucid-deploy", 3
ALIGNMENT = 4096  # bytes; a page, so that runtimes can map a tensor of the weight file without copying it
PACK_LIMIT = 1 << 30  # bytes; of a larger weight file, we let onnxruntime pack weights only if some are quantized
DTYPES = ("float32", "float16", "bfloat16")
STAGES = ("prefill", "decode")  # the graphs that every artifact has
VERIFY = "verify"  # an optional graph: a few new tokens over a cache, with logits for each of them
CACHES = ("growing", "static")
OPSET_TENSOR_SCATTER = 24  # of the standard operators: the first with TensorScatter, which writes into a static cache
_REMEDY = "Export the model again, or copy the file again if the artifact was copied."


def form_name(cache: str, inline: bool) -> str:
    """Name a form of the graphs: growing, static, inlined, or static inlined."""
    return ("inlined" if cache == "growing" else f"{cache} inlined") if inline else cache


def whole_pages(size: int) -> int:
    """Round a tensor's size in bytes up to whole pages: each tensor in the weight file begins on a page."""
    return -(-size // ALIGNMENT) * ALIGNMENT


Size = Annotated[int, Meta(ge=0, le=2**62)]
Name = Annotated[str, Meta(min_length=1)]
Number = Annotated[float, Meta(ge=-3.5e38, le=3.5e38)]


class TensorInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph input or output: name, numpy-style type name, and shape (numbers or names of dynamic axes)."""

    name: Name
    dtype: Name
    shape: tuple[Size | Name, ...]


class GraphInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph: its file in the artifact, and its inputs and outputs in order."""

    file: Name
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


class GraphForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another form of the graphs, on the same weights: with another kind of cache, or without functions."""

    cache: Annotated[str, Meta(pattern="^(growing|static)$")]
    inline: bool
    opset: Size
    graphs: dict[str, GraphInfo]


class FileFacts(TypedDict):
    """Size in bytes and hash of a file."""

    size: Size
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class AdapterSlots(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the graphs reserve for LoRA adapters: how many, their largest rank, and which layers they may change."""

    count: Size
    rank: Size
    targets: tuple[Name, ...]  # names of linear layers within a layer, such as self_attn.q_proj, and lm_head
    size: Size  # bytes of the matrices in the file


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of ``lucid.json``, beside ``format`` and ``format_version``."""

    config: LucidConfig  # the model
    dtype: Annotated[str, Meta(pattern="^(float32|float16|bfloat16)$")]  # of weights and arithmetic
    # growing: present tensors are past tensors plus the new rows; static: decode and verify write into given buffers.
    cache: Annotated[str, Meta(pattern="^(growing|static)$")]
    logits: Annotated[str, Meta(pattern="^(last|all)$")]  # for which new tokens prefill returns logits
    opset: Size  # highest version of the standard ONNX operators in the graphs
    operators: Size  # version of the operators of domain ai.lucid
    source: str  # the checkpoint it was exported from, a path or the word demo
    versions: dict[str, str]  # versions of lucid-deploy and of the libraries that wrote the artifact
    graphs: dict[str, GraphInfo]  # prefill and decode; verify where drafted tokens can be verified in one step
    files: dict[Name, FileFacts]  # every other file that the export wrote, except adapters.bin
    layers: tuple[LayerDescription, ...]  # every layer: its kind, its operators, what it caches
    transposed: tuple[str, ...]  # names of the weights that are stored [in, out], the layout MatMul reads
    float32_head: bool  # whether logits are computed in float32 also in a model of another type
    # Type that keys and values (of LUCID layers, K and Y) are cached in; empty means the model's.
    cache_dtype: Annotated[str, Meta(pattern="^(|float32|float16|bfloat16|int8|fp8)$")] = ""
    quantization: Quantization | None = None  # which weights are quantized, and how; None: none
    notes: tuple[str, ...] = ()  # sentences for the user: decisions and warnings of the export
    # Keys of the checkpoint's configuration that were ignored because the user declared them unused, with their values.
    assumed_unused: dict[str, Any] = field(default_factory=dict)
    hub: dict[str, str | None] | None = None  # of a checkpoint from the Hub: repository, revision, commit
    options: dict[str, Any] = field(default_factory=dict)  # what ExportOptions.recorded() returns
    adapter: str | None = None  # directory of the LoRA adapter that was added to the checkpoint's weights
    inline: bool = False  # whether the graphs contain our operators' bodies inline, instead of functions
    adapters: AdapterSlots | None = None  # None: the graphs have no input adapter_ids, and there is no file of adapters
    forms: tuple[GraphForm, ...] = ()  # all forms but the first; cache, inline, opset and graphs above are the first's
    forms_left_out: dict[str, str] = field(default_factory=dict)  # by form, such as static: why it was not written

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache_dtype", self.cache_dtype or self.dtype)
        for graphs in (self.graphs, *(form.graphs for form in self.forms)):
            if not {*STAGES} <= graphs.keys() <= {*STAGES, VERIFY}:
                raise ValueError(f"graphs are {', '.join(graphs)}, not {' and '.join(STAGES)}")

    @property
    def graph_form(self) -> str:
        """How graphs contain our operators: as ``functions``, or ``inline``: each node replaced by its body."""
        return "inline" if self.inline else "functions"

    @property
    def form(self) -> str:
        """The form of ``graphs`` in words: growing, static, inlined, or static inlined."""
        return form_name(self.cache, self.inline)

    @property
    def numbers(self) -> str:
        """The model's type, and any quantization: ``float32, int4 hqq, 4.9 bits a weight; int8 inputs on the CPU``."""
        return self.dtype if self.quantization is None else f"{self.dtype}, {self.quantization.words(self.dtype)}"

    def each_form(self) -> tuple[Manifest, ...]:
        """Return a manifest for each form, as if the artifact had only that form; the first form comes first."""
        others = (
            replace(
                self,
                cache=form.cache,
                inline=form.inline,
                opset=form.opset,
                graphs=form.graphs,
                layers=tuple(replace(layer, operators={}) for layer in self.layers) if form.inline else self.layers,
                forms=(),
                forms_left_out={},
            )
            for form in self.forms
        )
        return (replace(self, forms=(), forms_left_out={}), *others)

    def uses(self, operators: tuple[str, ...]) -> bool:
        """Whether any layer uses one of these operators of the domain ``ai.lucid`` in any graph."""
        return any(name in operators for layer in self.layers for names in layer.operators.values() for name in names)

    def to_json(self) -> str:
        """Return the text of ``lucid.json``."""
        data = {"format": FORMAT, "format_version": FORMAT_VERSION, **msgspec.to_builtins(asdict(self))}
        return json.dumps(data, indent=2, allow_nan=False) + "\n"


def read_manifest(directory: Path) -> Manifest:
    """Read an artifact's manifest; ``LucidError`` if it is missing, damaged or of another format version."""
    if directory.is_file():
        raise LucidError(f"{directory} is a file; an artifact is a directory. Make one with: lucid-deploy export")
    if not directory.is_dir():
        raise LucidError(f"There is no artifact at {directory}: no such directory. Make one with: lucid-deploy export")
    path = directory / MANIFEST
    if not path.is_file():
        hint = " It looks like a checkpoint; export it first." if (directory / "config.json").is_file() else ""
        raise LucidError(f"{directory} is no exported artifact: it has no {MANIFEST}.{hint}")
    with reading(path):
        content = path.read_bytes()
    try:
        data = finite(content.decode("utf-8"))
        name, version = data["format"], data["format_version"]
    except KeyError as error:
        raise LucidError(f"{path} is not a manifest of lucid-deploy: {error} is missing.") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise LucidError(f"{path} is not a manifest of lucid-deploy: {error}. {_REMEDY}") from error
    if name != FORMAT:
        raise LucidError(f"{path} is not a manifest of lucid-deploy: its format is {name!r}.")
    if type(version) is not int or version != FORMAT_VERSION:
        raise LucidError(
            f"{directory} has artifact format {version}; this lucid-deploy reads format {FORMAT_VERSION}. Use the "
            "version that exported it, or export again."
        )
    try:
        return _parse_manifest(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LucidError(f"{path} is damaged: {error!r}. Export it again.") from error


def _parse_manifest(data: dict[str, Any]) -> Manifest:
    if unknown := sorted(data.keys() - {item.name for item in fields(Manifest)} - {"format", "format_version"}):
        raise ValueError(f"unknown keys {', '.join(unknown)}")
    LucidConfig.from_dict(data["config"])  # checks values, beyond their types
    manifest = msgspec.convert(data, Manifest)  # exact types: true is no number
    for name in manifest.files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"file {name!r} lies outside the artifact")
    graphs = [*manifest.graphs.values(), *(graph for form in manifest.forms for graph in form.graphs.values())]
    named = {graph.file for graph in graphs}
    if unlisted := {WEIGHTS, *named} - manifest.files.keys():
        raise ValueError(f"{', '.join(sorted(unlisted))} is not among its files")
    if manifest.cache_dtype not in (manifest.dtype, *CACHE_DTYPES[1:]):
        raise ValueError(f"cache_dtype is {manifest.cache_dtype!r} with dtype {manifest.dtype!r}")
    return manifest
