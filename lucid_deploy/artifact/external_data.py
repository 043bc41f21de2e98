"""Check that a graph's external data, its weights outside the ONNX file, lies in the weight or adapter file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.artifact.manifest import ADAPTERS, WEIGHTS
from lucid_deploy.errors import CheckFailed, reading

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class StoredWeight:
    """A weight of a graph, or stacked matrices of adapters: the file of the artifact that holds it, and where."""

    name: str  # in the graph
    data_type: int  # its type, a value of onnx.TensorProto.DataType
    shape: tuple[int, ...]
    offset: int  # of its first byte
    size: int  # in bytes
    file: str = WEIGHTS


def stored_weights(model: onnx.ModelProto) -> tuple[StoredWeight, ...]:
    """Return the external weights of a graph in its order; ``check_external_data`` must have accepted the graph."""
    return tuple(
        StoredWeight(
            tensor.name,
            tensor.data_type,
            tuple(tensor.dims),
            int(place["offset"]),
            int(place["length"]),
            place["location"],
        )
        for tensor in model.graph.initializer
        if (place := _place(tensor))
    )


def _place(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def follow_links(model: onnx.ModelProto, directory: Path) -> None:
    """In a graph, replace names of weight files that are links by the links' targets: onnxruntime refuses links.

    The Hub's cache has such links. The new names have no folder: sessions look in the folder of the linked weights.
    """
    names = {name: (directory / name).resolve().name for name in (WEIGHTS, ADAPTERS)}
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = names.get(entry.value, entry.value)


def check_external_data(path: Path) -> onnx.ModelProto:
    """Read a graph without its external data; ``CheckFailed`` if any lies outside the weight and adapter files."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        with reading(path):
            model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise CheckFailed(f"{path} is not a readable ONNX file: {error}") from error
    sizes = {
        name: (path.parent / name).stat().st_size for name in (WEIGHTS, ADAPTERS) if (path.parent / name).is_file()
    }
    for tensor in _tensors(model.graph, *model.functions):
        place = _place(tensor)
        if not place:
            continue
        file = place.get("location", "")
        if file not in sizes:
            raise CheckFailed(
                f"{path}: weight {tensor.name} lies in {file!r}, outside the artifact's {WEIGHTS}. "
                "Do not trust this file; export it again."
            )
        offset, length = place.get("offset", ""), place.get("length", "")
        if not (offset.isdecimal() and length.isdecimal() and int(offset) + int(length) <= sizes[file]):
            raise CheckFailed(
                f"{path}: weight {tensor.name} lies beyond the end of {file} ({length} bytes at {offset} of "
                f"{sizes[file]}). Export it again."
            )
        if (needed := _bytes_of(tensor)) not in (None, int(length)):
            raise CheckFailed(
                f"{path}: weight {tensor.name} has {length} bytes, but its shape {list(tensor.dims)} needs "
                f"{'another number' if needed is None or needed < 0 else needed}. Export it again."
            )
    return model


# ONNX's names of types, by the bits of an element. The size of tensors of other types is not checked.
_TYPES = {
    4: ("INT4", "UINT4", "FLOAT4E2M1"),
    8: ("INT8", "UINT8", "FLOAT8E4M3FN"),
    16: ("FLOAT16", "BFLOAT16"),
    32: ("FLOAT", "INT32"),
    64: ("DOUBLE", "INT64"),
}


def _bytes_of(tensor: onnx.TensorProto) -> int | None:
    """Return how many bytes a tensor's shape and type need; -1 if either is invalid, None for unknown types."""
    from onnx import TensorProto

    if tensor.data_type not in TensorProto.DataType.values():
        return -1
    kind = TensorProto.DataType.Name(tensor.data_type)
    bits = next((bits for bits, kinds in _TYPES.items() if kind in kinds), None)
    if bits is None:
        return None
    return -1 if min(tensor.dims, default=0) < 0 else -(-math.prod(tensor.dims) * bits // 8)


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
