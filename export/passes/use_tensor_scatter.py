"""Turn the placeholder ``ai.lucid::ScatterRow`` into the standard ``TensorScatter``."""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.export.operators import OPSET_STATIC
from lucid_deploy.plugins.table import DOMAIN, SCATTER_ROW


def use_tensor_scatter(model: ir.Model) -> None:
    """Replace the placeholder and raise the model's opset to the one that has ``TensorScatter``.

    The tracer emits a placeholder because its own version conversion rejects nodes that are newer than its opset.
    Result: no node of the placeholder is left; a model without one is not changed.

    Args:
        model: The model.
    """
    for node in model.graph.all_nodes():
        if (node.domain, node.op_type) == (DOMAIN, SCATTER_ROW.name):
            node.domain, node.op_type, node.version = "", "TensorScatter", OPSET_STATIC
            node.attributes["axis"] = ir.AttrInt64("axis", -2)
            model.opset_imports[""] = OPSET_STATIC
