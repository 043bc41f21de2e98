"""The exported artifact: a directory whose manifest ``lucid.json`` names every file, its size and its sha256.

Reading it needs neither torch nor onnxruntime.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lucid_deploy.cache_types import CACHE_DTYPES, cache_tensors
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.quantization import PACKED, ROWS, SCALES, Quantization

if TYPE_CHECKING:
    import onnx

MANIFEST = "lucid.json"
WEIGHTS = "weights.bin"
FORMAT, FORMAT_VERSION = "lucid-deploy", 1
PACK_LIMIT = 1 << 30  # bytes of weights up to which each graph on the CPU keeps a packed copy of them
DTYPES = ("float32", "float16", "bfloat16")
STAGES = ("prefill", "decode")
CACHES = ("growing", "static")


@dataclass(frozen=True)
class TensorInfo:
    """One graph input or output: name, numpy-style type name, and shape (numbers or names of dynamic axes)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphInfo:
    """One graph: its file in the artifact, and its inputs and outputs in order."""

    file: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Manifest:
    """The content of ``lucid.json``.

    Attributes:
        config: The model.
        dtype: Type of weights and arithmetic: ``float32``, ``float16`` or ``bfloat16``.
        cache: ``growing``: present tensors are past tensors plus the new rows; ``static``: decode takes buffers and
            writes its row into them.
        logits: ``last`` or ``all``: for which of the new tokens prefill gives logits.
        opset: Version of the standard ONNX operator set.
        operators: Version of the operators of domain ``ai.lucid``.
        source: The checkpoint it was exported from, a path or the word ``demo``.
        versions: Versions of lucid-deploy and of the libraries that wrote the artifact.
        graphs: ``prefill`` and ``decode``.
        files: Size in bytes and sha256 of every other file of the artifact.
        cache_dtype: Type that K and Y are cached in, the model's or ``float16`` or ``int8``; empty means the model's.
        ranges: What the range scan before the export found, or that it was skipped; None where none was needed.
        quantization: Which weights are quantized, and how; None: none.
    """

    config: LucidConfig
    dtype: str
    cache: str
    logits: str
    opset: int
    operators: int
    source: str
    versions: dict[str, str]
    graphs: dict[str, GraphInfo]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    cache_dtype: str = ""
    ranges: dict[str, Any] | None = None
    quantization: Quantization | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache_dtype", self.cache_dtype or self.dtype)

    def to_json(self) -> str:
        """Return the text of ``lucid.json``."""
        data = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        data["config"] = self.config.to_dict()
        return json.dumps(data, indent=2) + "\n"


@dataclass(frozen=True)
class Artifact:
    """An opened artifact; :func:`open_artifact` makes it."""

    directory: Path
    manifest: Manifest

    @property
    def config(self) -> LucidConfig:
        """The model's configuration."""
        return self.manifest.config

    @property
    def identity(self) -> str:
        """What model this is: a sha256 over its configuration, its type and its weights."""
        parts = [self.config.to_dict(), self.manifest.dtype, self.manifest.files[WEIGHTS]["sha256"]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def path(self, name: str) -> Path:
        """Return the path of one of its files."""
        return self.directory / name

    def graph_path(self, stage: str) -> Path:
        """Return the path of the ``prefill`` or ``decode`` graph."""
        return self.directory / self.manifest.graphs[stage].file


def open_artifact(directory: str | Path) -> Artifact:
    """Open an artifact and check what is cheap to check: versions, sizes of all files, external-data paths.

    Args:
        directory: Where it lies.

    Raises:
        LucidError: It is no artifact, or of a newer format.
        CheckFailed: A file is missing, was cut, or was swapped for one of another size.
    """
    directory = Path(directory)
    manifest = _read_manifest(directory)
    for name, facts in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise CheckFailed(f"{directory} is incomplete: {name} is missing. Export it again.")
        if path.stat().st_size != facts["size"]:
            raise CheckFailed(
                f"{path} has {path.stat().st_size} bytes, its manifest says {facts['size']}: it was cut or swapped. "
                "Export it again."
            )
    artifact = Artifact(directory, manifest)
    for stage in STAGES:
        model = check_external_data(artifact.graph_path(stage))
        _check_contract(artifact, stage, model)
        _check_quantization(artifact, stage, model)
    return artifact


def check_hashes(artifact: Artifact, progress: Callable[[int, int], None] | None = None) -> None:
    """Compare the sha256 of every file with the manifest.

    Args:
        artifact: The artifact.
        progress: Called with (bytes read, bytes in all).

    Raises:
        CheckFailed: A file differs; all of them are named.
    """
    total = sum(facts["size"] for facts in artifact.manifest.files.values())
    read, wrong = 0, []
    for name, facts in artifact.manifest.files.items():
        digest = hashlib.sha256()
        with artifact.path(name).open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
                read += len(block)
                if progress is not None:
                    progress(read, total)
        if digest.hexdigest() != facts["sha256"]:
            wrong.append(name)
    if wrong:
        raise CheckFailed(
            f"{artifact.directory}: sha256 of {', '.join(wrong)} differs from the manifest: changed after the export. "
            "Export it again."
        )


def check_external_data(path: Path) -> onnx.ModelProto:
    """Check that a graph is readable and takes weights from beside itself only.

    Raises:
        CheckFailed: The file is not an ONNX graph, or an external-data location leaves the artifact.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise CheckFailed(f"{path} is not a readable ONNX file: {error}") from error
    size = (path.parent / WEIGHTS).stat().st_size
    for tensor in _tensors(model.graph, *model.functions):
        place = {entry.key: entry.value for entry in tensor.external_data}
        if not place:
            continue
        if place.get("location") != WEIGHTS:
            raise CheckFailed(
                f"{path}: weight {tensor.name} lies in {place.get('location')!r}, outside the artifact's {WEIGHTS}. "
                "Do not trust this file; export it again."
            )
        offset, length = place.get("offset", ""), place.get("length", "")
        if not (offset.isdecimal() and length.isdecimal() and int(offset) + int(length) <= size):
            raise CheckFailed(
                f"{path}: weight {tensor.name} lies beyond the end of {WEIGHTS} ({length} bytes at {offset} of "
                f"{size}). Export it again."
            )
    return model


def _check_contract(artifact: Artifact, stage: str, model: onnx.ModelProto) -> None:
    """Compare a graph's inputs and outputs with the manifest, and those with the manifest's model."""

    def described(values: Any) -> list[tuple[str, tuple[int | str, ...]]]:
        return [(v.name, tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim)) for v in values]

    info, config = artifact.manifest.graphs[stage], artifact.config
    graph = [*described(model.graph.input), *described(model.graph.output)]
    listed = [(item.name, item.shape) for item in (*info.inputs, *info.outputs)]
    cache = [
        (item.name, item.dtype, *item.shape[1::2]) for item in info.inputs if item.name.startswith("past_key_values.")
    ]
    wanted = [
        (f"past_key_values.{layer}.{tensor.suffix}", tensor.dtype, config.num_key_value_heads, tensor.width)
        for layer in range(config.num_hidden_layers)
        for tensor in cache_tensors(artifact.manifest.cache_dtype, config.head_dim)
    ]
    static = any(item.name == "cache_length" for item in info.inputs)
    fits = (
        graph == listed
        and cache == wanted
        and info.outputs[0].shape[-1] == config.vocab_size
        and (info.inputs[0].shape[-1] == 1) == (stage == "decode")
        and static == (stage == "decode" and artifact.manifest.cache == "static")
    )
    if not fits:
        raise CheckFailed(
            f"{artifact.graph_path(stage)} does not fit {MANIFEST}: inputs and outputs are those of another model or "
            "stage. Export it again."
        )


def _check_quantization(artifact: Artifact, stage: str, model: onnx.ModelProto) -> None:
    """Compare the quantized weights of a graph with the manifest's record."""
    from onnx import TensorProto

    record = artifact.manifest.quantization
    dtype = {"float32": "FLOAT"}.get(artifact.manifest.dtype, artifact.manifest.dtype.upper())
    found = {
        tensor.name: (TensorProto.DataType.Name(tensor.data_type), tuple(tensor.dims))
        for tensor in model.graph.initializer
        if tensor.name.endswith((PACKED, SCALES, ROWS))
    }
    wanted = {}
    for name in record.tensors if record is not None else ():
        assert record is not None
        numbers = [part for part in (PACKED, ROWS) if name + part in found] or [PACKED]  # an embedding is read in rows
        for part in (*numbers, SCALES):
            kind = dtype if part == SCALES else record.packed_dtype.upper()
            wanted[name + part] = (kind, record.part_shape(name, part))
    if found != wanted:
        differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
        raise CheckFailed(
            f"{artifact.graph_path(stage)} has other quantized weights than {MANIFEST} records: "
            f"{', '.join(differing[:5])}. Export it again."
        )


def _tensors(*owners: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that may lie in another file: initializers, and constants in nodes and in their subgraphs."""
    for owner in owners:
        yield from getattr(owner, "initializer", ())
        for sparse in getattr(owner, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for attribute in (attribute for node in owner.node for attribute in node.attribute):
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
            yield from _tensors(attribute.g, *attribute.graphs)


def _read_manifest(directory: Path) -> Manifest:
    if directory.is_file():
        raise LucidError(f"{directory} is a file; an artifact is a directory. Make one with: lucid-deploy export")
    if not directory.is_dir():
        raise LucidError(f"There is no artifact at {directory}: no such directory. Make one with: lucid-deploy export")
    path = directory / MANIFEST
    if not path.is_file():
        hint = " It looks like a checkpoint; export it first." if (directory / "config.json").is_file() else ""
        raise LucidError(f"{directory} is no exported artifact: it has no {MANIFEST}.{hint}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        name, version = data["format"], data["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise LucidError(f"{path} is not a manifest of lucid-deploy: {error!r}") from error
    if name != FORMAT:
        raise LucidError(f"{path} is not a manifest of lucid-deploy: its format is {name!r}.")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise LucidError(
            f"{directory} has artifact format {version}; this lucid-deploy reads up to {FORMAT_VERSION}. "
            "Upgrade lucid-deploy, or export again with this version."
        )
    try:
        return _parse_manifest(data)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise LucidError(f"{path} is damaged: {error!r}. Export it again.") from error


def _parse_manifest(data: dict[str, Any]) -> Manifest:
    def tensors(items: list[dict[str, Any]]) -> tuple[TensorInfo, ...]:
        return tuple(TensorInfo(item["name"], item["dtype"], tuple(item["shape"])) for item in items)

    graphs = {
        stage: GraphInfo(graph["file"], tensors(graph["inputs"]), tensors(graph["outputs"]))
        for stage, graph in data["graphs"].items()
    }
    if set(graphs) != set(STAGES):
        raise ValueError(f"graphs are {sorted(graphs)}, not {sorted(STAGES)}")
    files = {
        name: {"size": int(facts["size"]), "sha256": str(facts["sha256"])} for name, facts in data["files"].items()
    }
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"file {name!r} lies outside the artifact")
    unlisted = {WEIGHTS, *(graph.file for graph in graphs.values())} - files.keys()
    if unlisted:
        raise ValueError(f"{', '.join(sorted(unlisted))} is not among its files")
    for key, allowed in (("dtype", DTYPES), ("cache", CACHES), ("logits", ("last", "all"))):
        if data[key] not in allowed:
            raise ValueError(f"{key} is {data[key]!r}")
    plain = ("dtype", "cache", "logits", "opset", "operators", "source", "versions")
    cache_dtype = data.get("cache_dtype") or data["dtype"]
    if cache_dtype not in (data["dtype"], *CACHE_DTYPES[1:]):
        raise ValueError(f"cache_dtype is {cache_dtype!r}")
    for key, kind in (("opset", int), ("operators", int), ("source", str), ("versions", dict)):
        if type(data[key]) is not kind:
            raise ValueError(f"{key} is {data[key]!r}")
    ranges = data.get("ranges")
    if ranges is not None:
        _check_ranges(ranges)
    return Manifest(
        config=LucidConfig.from_dict(data["config"]),
        graphs=graphs,
        files=files,
        cache_dtype=cache_dtype,
        ranges=ranges,
        quantization=None if data.get("quantization") is None else Quantization.from_dict(data["quantization"]),
        **{key: data[key] for key in plain},
    )


def _check_ranges(ranges: dict[str, Any]) -> None:
    """Check the record of a range scan, see :mod:`lucid_deploy.export.range_scan`."""
    if ranges["skipped"] is True:
        return
    peaks = [peak for row in ranges["peaks"].values() for peak in row.values()]
    numbers = [ranges[key] for key in ("prompts", "tokens", "limit")]
    if not peaks or any(type(value) not in (int, float) for value in (*peaks, *numbers)):
        raise ValueError("ranges holds no numbers")
    if not all(isinstance(warning, str) for warning in ranges["warnings"]):
        raise ValueError(f"warnings of ranges are {ranges['warnings']!r}")
