"""Schemas of the operators, and how the tracer makes nodes of PyTorch's."""

from __future__ import annotations

import inspect

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from lucid_deploy.export.operators import OPSET, OPSET_STATIC, schema, translation_table
from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DECODE_ATTENTION_INT8, DOMAIN, OPERATORS, VERSION, Operator


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda each: each.name)
def test_schemas_are_the_tables(operator: Operator) -> None:
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


@pytest.mark.parametrize("operator", IN_TORCH, ids=lambda each: each.name)
def test_float_types_are_spelled_as_onnx_does(operator: Operator) -> None:
    [constraint] = schema(operator).type_constraints
    wanted = {"float32": "tensor(float)", "float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}
    assert {wanted.get(kind, f"tensor({kind})") for kind in operator.types} == set(constraint.allowed_type_strs)


def test_types_that_are_fixed_are_not_those_of_the_model() -> None:
    kinds = {each.name: each.type_str for each in schema(DECODE_ATTENTION_INT8).inputs}
    assert (kinds["Q"], kinds["K"], kinds["K_scale"], kinds["mask"]) == (
        "T",
        "tensor(int8)",
        "tensor(float)",
        "tensor(bool)",
    )


@pytest.mark.parametrize(("opset", "operator"), [(OPSET, "Attention"), (OPSET_STATIC, "TensorScatter")])
def test_the_versions_of_standard_operators_are_the_first_that_have_what_graphs_use(opset: int, operator: str) -> None:
    assert onnx.defs.get_schema(operator, opset).since_version == opset


def one_node(inputs: tuple[str, ...]) -> onnx.ModelProto:
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in (*inputs, "O")]
    node = helper.make_node(CAUSAL_ATTENTION.name, inputs, ["O"], domain=DOMAIN)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)]
    graph = helper.make_graph([node], "graph", info[:-1], info[-1:])
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_onnx_checks_a_node_by_its_schema() -> None:
    made, names = schema(CAUSAL_ATTENTION), CAUSAL_ATTENTION.input_names
    onnx.defs.register_schema(made)
    try:
        onnx.checker.check_model(one_node(names), check_custom_domain=True)
        with pytest.raises(onnx.checker.ValidationError, match="input size 3"):
            onnx.checker.check_model(one_node(names[:-1]), check_custom_domain=True)
    finally:
        onnx.defs.deregister_schema(made.name, made.since_version, made.domain)
