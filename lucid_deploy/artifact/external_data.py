"""Weights that lie outside a graph's file: where they may lie, and that they do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lucid_deploy.artifact.manifest import WEIGHTS
from lucid_deploy.errors import CheckFailed

if TYPE_CHECKING:
    import onnx


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
