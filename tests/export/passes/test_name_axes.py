"""Dynamic axes are called what the contract says."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from onnx import helper

from lucid_deploy.export.passes import name_axes
from tests.export.passes.graphs import FLOAT, model

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


def test_inputs_have_the_shapes_given_and_sums_their_names() -> None:
    found = made()
    name_axes(found, AXES)
    assert {str(value.name): shape(value) for value in found.graph.inputs} == AXES
    assert shape(found.graph.node(0).outputs[0]) == ["batch", "past_sequence + sequence", 4]
    assert shape(found.graph.outputs[0]) == ["batch", "sequence + past_sequence", 4]


def test_an_axis_without_a_name_stays_without() -> None:
    found = made()
    found.graph.node(0).outputs[0].shape = ir.Shape([None, 7, 4])
    name_axes(found, AXES)
    assert shape(found.graph.node(0).outputs[0]) == [None, 7, 4]


def test_values_inside_of_loops_and_branches_are_named_too() -> None:
    found = made()
    inner = ir.node("Relu", [found.graph.node(0).outputs[0]])
    inner.outputs[0].shape = ir.Shape(["s2", 4])
    branch = ir.Graph([], [inner.outputs[0]], nodes=[inner], name="branch")
    attributes = [ir.AttrGraph("then_branch", branch)]
    found.graph.append(ir.Node("", "If", [found.graph.inputs[0]], attributes))
    name_axes(found, AXES)
    assert shape(inner.outputs[0]) == ["sequence", 4]


@pytest.mark.parametrize("axes", [{"past": AXES["past"]}, {**AXES, "new": ["batch", "sequence"]}], ids=["one", "short"])
def test_inputs_that_are_not_all_described_are_an_error(axes: dict[str, list[int | str]]) -> None:
    with pytest.raises((KeyError, ValueError)):
        name_axes(made(), axes)
