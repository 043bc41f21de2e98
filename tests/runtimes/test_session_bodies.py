"""Bodies that sessions attach: the one of the operator, of its diagonal and of the graph's opset, and no other left."""

from __future__ import annotations

import onnx
import pytest

from lucid_deploy.export.functions import function_proto
from lucid_deploy.plugins.table import DECODE_ATTENTION, DECODE_ATTENTION_INT8, DIAGONAL, DOMAIN, Operator
from lucid_deploy.runtimes.session_bodies import attach_body

BODIES = {DECODE_ATTENTION: {"several": True}, DECODE_ATTENTION_INT8: {}}


def graph_of(operator: Operator, opset: int, training: bool) -> onnx.ModelProto:
    """Return a graph with one node of an operator and one of another, and the bodies of two others."""
    make = onnx.helper
    attributes = {"epsilon": 1e-5} | ({DIAGONAL.name: 1.0} if training else {})
    nodes = [
        make.make_node(operator.name, operator.input_names, operator.output_names, domain=DOMAIN, **attributes),
        make.make_node("CausalAttention", ["Q", "K", "Y", "mask"], ["attended"], domain=DOMAIN),
    ]
    bodies = [function_proto(name, opset) for name in ("CausalAttention", "Precondition", "DecodeAttention")]
    opsets = [make.make_opsetid("", opset), make.make_opsetid(DOMAIN, 1)]
    return make.make_model(make.make_graph(nodes, "graph", [], []), functions=bodies, opset_imports=opsets)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize("operator", BODIES, ids=lambda operator: operator.name)
def test_the_graph_has_the_body_that_its_nodes_need(operator: Operator, opset: int, training: bool) -> None:
    model = graph_of(operator, opset, training)
    attach_body(model, operator)
    assert [each.name for each in model.functions] == ["CausalAttention", operator.name]
    body = model.functions[1]
    wanted = function_proto(operator.name, opset, training, **BODIES[operator])
    assert [node.op_type for node in body.node] == [node.op_type for node in wanted.node]
    assert (body.attribute, body.input, body.output) == (wanted.attribute, wanted.input, wanted.output)
    assert [item.version for item in body.opset_import if item.domain == ""] == [opset]


def test_a_graph_without_the_operator_stays_as_it_is() -> None:
    model = graph_of(DECODE_ATTENTION, 23, False)
    before = model.SerializeToString()
    attach_body(model, DECODE_ATTENTION_INT8)
    assert model.SerializeToString() == before
