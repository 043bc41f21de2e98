"""Give a dynamic axis a fixed size."""

from __future__ import annotations

import onnx_ir as ir


def fix_axis(model: ir.Model, axis: str, size: int) -> bool:
    """Fix an axis of the graph's inputs and outputs.

    TensorRT writes into a cache in place only if the buffer's length is known when the engine is built.
    Requires: nothing. Sums that contain the axis are not touched.
    Result: no input or output has the axis; what the tracer noted about values in between is forgotten, since it may
    name the axis, and readers of the graph infer it again.

    Returns:
        Whether an input or output had it.
    """
    found = False
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.shape is None:
            continue
        dims = [size if isinstance(dim, ir.SymbolicDim) and dim.value == axis else dim for dim in value.shape]
        found = found or list(value.shape) != dims
        value.shape = ir.Shape(dims)
    if found:
        outputs = set(model.graph.outputs)
        for node in model.graph:
            for value in node.outputs:
                if value not in outputs:
                    value.shape = None
    return found
