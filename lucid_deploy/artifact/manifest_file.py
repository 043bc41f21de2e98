"""The form of ``lucid.json`` on disk: types are exact (true is no number), unknown keys are refused.

``docs/schemas/lucid.schema.json`` says the same as a JSON schema: change both together. A test compares them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription

Size = Annotated[int, Meta(ge=0, le=2**62)]
Name = Annotated[str, Meta(min_length=1)]
Number = Annotated[float, Meta(ge=-3.5e38, le=3.5e38)]


class Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input or output of a graph."""

    name: Name
    dtype: Name
    shape: tuple[Size | Name, ...]


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One graph: its file, and its inputs and outputs in order."""

    file: Name
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Graphs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The graphs of an artifact; ``verify`` only where drafted tokens can be verified in one step."""

    prefill: Graph
    decode: Graph
    verify: Graph | msgspec.UnsetType = msgspec.UNSET


class FileFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size in bytes and hash of a file."""

    size: Size
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Ranges(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a range scan found before a float16 export, or that it was skipped."""

    skipped: bool
    limit: Number | None = None
    margin: Number | None = None
    prompts: Size | None = None
    tokens: Size | None = None
    calibration: str | None = None
    peaks: dict[str, dict[str, Number]] = {}
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.skipped and (not self.peaks or None in (self.limit, self.prompts, self.tokens)):
            raise ValueError("a scan that was not skipped has peaks, a limit, prompts and tokens")


class ManifestFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of ``lucid.json``; :class:`~lucid_deploy.artifact.manifest.Manifest` says what they mean."""

    format: Literal["lucid-deploy"]
    format_version: Literal[1, 2]
    config: LucidConfig
    dtype: Literal["float32", "float16", "bfloat16"]
    cache: Literal["growing", "static"]
    logits: Literal["last", "all"]
    opset: Size
    operators: Size
    source: str
    versions: dict[str, str]
    graphs: Graphs
    files: dict[Name, FileFacts]
    cache_dtype: Literal["", "float32", "float16", "bfloat16", "int8", "fp8"] = ""
    ranges: Ranges | None = None
    quantization: Quantization | None = None
    layers: tuple[LayerDescription, ...] = ()
    transposed: tuple[str, ...] = ()
    float32_head: bool = True
    notes: tuple[str, ...] = ()
    assumed_unused: dict[str, Any] = {}
    hub: dict[str, str | None] | None = None
    options: dict[str, Any] = {}
    inline: bool = False
