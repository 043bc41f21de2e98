"""Names say the layer and the operator, and do not depend on the tracer's counters."""

from __future__ import annotations

import onnx_ir as ir
from onnx import helper

from lucid_deploy.export.passes import name_values
from tests.export.passes.graphs import FLOAT, INT64, model, weight_of


def test_names() -> None:
    graph = model(
        [
            helper.make_node("MatMul", ["x", "w"], ["linear_17"]),
            helper.make_node("Split", ["linear_17"], ["split_0", "split_1"], axis=0, num_outputs=2),
            helper.make_node("MatMul", ["split_1", "w"], ["linear_18"]),
            helper.make_node("Reshape", ["linear_18", "val_9"], ["y"]),
        ],
        {"x": (FLOAT, [4, 2]), "w": (FLOAT, [2, 2]), "val_9": (INT64, [2])},
        {"y": (FLOAT, [1, 4])},
    )
    weight_of(graph.graph, "w")
    constant = weight_of(graph.graph, "val_9")
    constant.const_value = ir.tensor([1, 4], name="val_9")
    nodes = list(graph.graph)
    name_values(graph, dict(zip(nodes, [5, 5, 5, None], strict=True)), {"w"})
    assert [node.name for node in nodes] == ["layers.5/MatMul_0", "layers.5/Split_0", "layers.5/MatMul_1", "Reshape_0"]
    values = [value.name for node in nodes for value in node.outputs]
    assert values == ["layers.5/MatMul_0", "layers.5/Split_0", "layers.5/Split_0.1", "layers.5/MatMul_1", "y"]
    assert set(graph.graph.initializers) == {"w", "constant_0"} and constant.const_value.name == "constant_0"
