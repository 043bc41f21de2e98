"""Dynamic axes are called what the contract says."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnx import helper

from lucid_deploy.export.passes.naming import SCOPES, layers_of, name_axes, name_values
from tests.export.passes.graphs import FLOAT, INT64, model, weight_of

NODES = [helper.make_node("Concat", ["past", "new"], ["present"], axis=1), helper.make_node("Relu", ["present"], ["y"])]
AXES: dict[str, list[int | str]] = {"past": ["batch", "past_sequence", 4], "new": ["batch", "sequence", 4]}


def made() -> ir.Model:
    """Symbols as the tracer gives them; one is a part of another's name, and sums have them in either order."""
    inputs: dict[str, tuple[int, list[Any]]] = {"past": (FLOAT, ["s1", "s11", 4]), "new": (FLOAT, ["s1", "s2", 4])}
    found = model(NODES, inputs, {"y": (FLOAT, ["s1", "s2 + s11", 4])})
    present = found.graph.node(0).outputs[0]
    present.shape = ir.Shape(["s1", "s11 + s2", 4])
    return found


def shape(value: ir.Value | None) -> list[int | str | None]:
    assert value is not None and value.shape is not None
    return [dim.value if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape]


def test_shapes_use_the_given_axis_names_also_in_sums() -> None:
    found = made()
    name_axes(found, AXES)
    assert {str(value.name): shape(value) for value in found.graph.inputs} == AXES
    assert shape(found.graph.node(0).outputs[0]) == ["batch", "past_sequence + sequence", 4]
    assert shape(found.graph.outputs[0]) == ["batch", "sequence + past_sequence", 4]


def test_values_inside_of_loops_and_branches_are_named_too() -> None:
    found = made()
    inner = ir.node("Relu", [found.graph.node(0).outputs[0]])
    inner.outputs[0].shape = ir.Shape(["s2", 4])
    branch = ir.Graph([], [inner.outputs[0]], nodes=[inner], name="branch")
    attributes = [ir.AttrGraph("then_branch", branch)]
    found.graph.append(ir.Node("", "If", [found.graph.inputs[0]], attributes))
    name_axes(found, AXES)
    assert shape(inner.outputs[0]) == ["sequence", 4]


def test_nodes_and_values_are_named_by_layer_and_operator() -> None:
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


NOTES = {
    "head": "['', 'model', 'mul']",
    "0": "['', 'model', 'model.model.layers.0', 'linear']",
    "1": "['', 'model', 'model.model.layers.1']",
    "12": "['', 'model', 'model.model.layers.12.self_attn']",
}


def nodes(*notes: str | None) -> list[ir.Node]:
    return [ir.Node("", "Relu", [], metadata_props={} if note is None else {SCOPES: NOTES[note]}) for note in notes]


def test_nodes_without_a_scope_get_the_layer_of_their_neighbours() -> None:
    given = nodes(None, "head", None, "0", None, None, "0", None, "1", "12", None, "head", None)
    assert list(layers_of(given).items()) == list(
        zip(given, [None, None, None, 0, 0, 0, 0, None, 1, 12, None, None, None], strict=True)
    )
