"""Turn the placeholder ``ai.lucid::ScatterRow`` into standard operators that write rows into a buffer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lucid_deploy.artifact import OPSET_TENSOR_SCATTER
from lucid_deploy.plugins.table import DOMAIN, SCATTER_ROW


def write_rows(model: ir.Model, opset: int) -> None:
    """Replace the placeholder by ``TensorScatter`` or, in opsets below 24, by ``ScatterElements``.

    The tracer emits a placeholder because the exporter's version conversion rejects nodes newer than its opset.
    Requires: in opsets below 24, each batch row gets only one new row.
    Result: no placeholder is left. With ``TensorScatter`` the model's opset is raised to 24, the first that has it.
    """
    for node in list(model.graph):
        if (node.domain, node.op_type) != (DOMAIN, SCATTER_ROW.name):
            continue
        if opset >= OPSET_TENSOR_SCATTER:
            node.domain, node.op_type, node.version = "", "TensorScatter", OPSET_TENSOR_SCATTER
            node.attributes["axis"] = ir.AttrInt64("axis", -2)
            model.opset_imports[""] = OPSET_TENSOR_SCATTER
        else:
            _scatter_elements(model.graph, node)


def _scatter_elements(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a placeholder; ``index`` is expanded over heads and width, since every element needs an index."""
    cache, row, index = node.inputs
    assert row is not None
    shape = ir.node("Shape", [row])  # (B, H, 1, D)
    axes = ir.node("Constant", [], {"value": ir.tensor(np.array([1, 2, 3], np.int64))})
    column = ir.node("Unsqueeze", [index, axes.outputs[0]])  # (B, 1, 1, 1)
    indices = ir.node("Expand", [column.outputs[0], shape.outputs[0]])  # (B, H, 1, D)
    scatter = ir.node("ScatterElements", [cache, indices.outputs[0], row], {"axis": 2})
    made = [shape, axes, column, indices, scatter]
    [old], [new] = node.outputs, scatter.outputs
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [old], [new])
