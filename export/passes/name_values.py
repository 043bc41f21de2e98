"""Name nodes and values after their layers and operators instead of the tracer's counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import onnx_ir as ir


def name_values(model: ir.Model, layers: Mapping[ir.Node, int | None], kept: Collection[str]) -> None:
    """Rename all nodes, values between nodes and constants.

    Requires: inputs, outputs and weights have their names.
    Result: the third product of layer 5 is ``layers.5/MatMul_2``, whatever the depth and the versions of the tracer.
        Of several outputs of a node the second is ``….1``. Constants are numbered as they are read.

    Args:
        model: The model.
        layers: For each node its layer, None outside all.
        kept: Names of the weights.
    """
    graph = model.graph
    fixed = {*graph.inputs, *graph.outputs, *(value for value in graph.initializers.values() if value.name in kept)}
    seen: Counter[str] = Counter()
    constants: dict[ir.Value, None] = {}
    for node in graph:
        layer = layers.get(node)
        scope = node.op_type if layer is None else f"layers.{layer}/{node.op_type}"
        node.name = f"{scope}_{seen[scope]}"
        seen[scope] += 1
        for place, value in enumerate(node.outputs):
            if value not in fixed:
                value.name = node.name if place == 0 else f"{node.name}.{place}"
        constants.update((value, None) for value in node.inputs if value is not None and value.is_initializer())
    for number, value in enumerate(value for value in constants if value not in fixed):
        graph.initializers.pop(str(value.name))
        value.name = f"constant_{number}"
        assert value.const_value is not None
        value.const_value.name = value.name
        graph.initializers[value.name] = value
