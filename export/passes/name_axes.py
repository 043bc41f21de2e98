"""Give dynamic axes the names of the graph contract instead of the tracer's symbols."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import onnx_ir as ir


def name_axes(model: ir.Model, input_axes: dict[str, Sequence[int | str]]) -> None:
    """Rename the symbols of all shapes.

    Requires: every graph input that has a dynamic axis is in ``input_axes``.
    Result: inputs have exactly the shapes given; other values the same names, in sums where the tracer had sums.

    Args:
        model: The model.
        input_axes: For each graph input, per axis a number or a name.
    """
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        wanted = input_axes[str(value.name)]
        for old, new in zip(value.shape or (), wanted, strict=True):
            if isinstance(old, ir.SymbolicDim) and re.fullmatch(r"\w+", str(old.value)):
                names[str(old.value)] = str(new)
        value.shape = ir.Shape(wanted)
    inputs = set(model.graph.inputs)
    for value in _values(model.graph):
        if value.shape is not None and value not in inputs:
            value.shape = ir.Shape([_rename(dim, names) for dim in value.shape])


def _rename(dim: int | ir.SymbolicDim, names: dict[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    if dim.value is None:
        return None
    return re.sub(r"[A-Za-z_]\w*", lambda match: names.get(match.group(), match.group()), str(dim.value))


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph.all_nodes():
        yield from node.outputs
