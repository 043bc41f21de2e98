"""Schemas of the operators, and how the tracer translates PyTorch's operators to nodes."""

from __future__ import annotations

import inspect

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from lucid_deploy.export.operators import OPSET, schema, translation_table
from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DOMAIN, OPERATORS, VERSION, Operator


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda each: each.name)
def test_schemas_agree_with_the_table(operator: Operator) -> None:
    found = schema(operator)
    assert (found.name, found.domain, found.since_version) == (operator.name, DOMAIN, VERSION)
    assert tuple(each.name for each in found.inputs) == operator.input_names
    assert tuple(each.name for each in found.outputs) == operator.output_names
    required = {each.name: each.default is None for each in operator.attributes}
    assert {name: attribute.required for name, attribute in found.attributes.items()} == required


IN_TORCH = [each for each in OPERATORS if each.torch_name]


def pytorchs(operator: Operator) -> torch._ops.OpOverload:
    namespace, name = operator.torch_name.split("::")
    return getattr(getattr(torch.ops, namespace), name).default


def test_every_operator_of_pytorch_becomes_a_node() -> None:
    """The tracer calls these with PyTorch's arguments by name, so both must have the same."""
    table = translation_table()
    assert set(table) == {pytorchs(each) for each in IN_TORCH}
    for operator in IN_TORCH:
        translation, found = table[pytorchs(operator)], pytorchs(operator)
        assert list(inspect.signature(translation).parameters) == [each.name for each in found._schema.arguments]


def one_node(inputs: tuple[str, ...]) -> onnx.ModelProto:
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in (*inputs, "O")]
    node = helper.make_node(CAUSAL_ATTENTION.name, inputs, ["O"], domain=DOMAIN)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph([node], "graph", info[:-1], info[-1:])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)
