"""Graphs of one operator, with its body as a function, so that runtimes without a kernel for it run them too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper

from lucid_deploy.conformance.problems import ATTRIBUTES, NUMPY, Problem
from lucid_deploy.export.functions import FUNCTIONS, function_proto
from lucid_deploy.export.operators import OPSET
from lucid_deploy.plugins import table
from lucid_deploy.plugins.table import DOMAIN, VERSION, Operator

IR_VERSION = 10
# Axes that have fixed sizes in these graphs; the others are dynamic.
_FIXED = ("kv_heads", "heads", "head_dim", "key_width", "value_width", "1")


def operator_model(problem: Problem) -> onnx.ModelProto:
    """Return a graph with one node: the problem's operator."""
    operator, sizes = problem.operator, {"heads": problem.heads * problem.groups, "kv_heads": problem.heads}
    sizes |= {"head_dim": problem.width, "key_width": problem.width, "value_width": problem.value_width, "1": 1}

    def info(item: table.Tensor) -> onnx.ValueInfoProto:
        axes = [sizes[axis] if axis in _FIXED else axis for axis in item.shape.strip("[]").split(", ")]
        dtype = NUMPY[problem.dtype if item.type == "T" else item.type]
        return helper.make_tensor_value_info(item.name, helper.np_dtype_to_tensor_dtype(dtype), axes)

    graph = helper.make_graph(
        [operator_node(operator, operator.input_names, operator.output_names, problem.attributes)],
        operator.name,
        [info(item) for item in operator.inputs],
        [info(item) for item in operator.outputs],
    )
    return whole_model(graph, [operator], problem.diagonal != 0, problem.new == 1, problem.new > 1)


def operator_node(
    operator: Operator,
    inputs: tuple[str, ...] | list[str],
    outputs: tuple[str, ...] | list[str],
    attributes: Mapping[str, Any] | None = None,
) -> onnx.NodeProto:
    """Return a node of an operator; ``attributes`` None: the required attributes, with the values of the cases."""
    if attributes is None:
        attributes = {each.name: ATTRIBUTES[each.name] for each in operator.required}
    return helper.make_node(operator.name, inputs, outputs, domain=DOMAIN, **attributes)


def whole_model(
    graph: onnx.GraphProto,
    operators: list[Operator],
    diagonal: bool = False,
    one_token: bool = False,
    several: bool = False,
) -> onnx.ModelProto:
    """Return the model of a graph, with the bodies of its operators; it passes ONNX's checker.

    Args:
        graph: The graph.
        operators: The operators that the graph has.
        diagonal: Whether the operators' nodes have the attribute ``diagonal``.
        one_token: Whether the nodes get one new token, for which an operator may have a body of its own.
        several: Whether the nodes get several new tokens, for which an operator may have another body of its own.
    """
    model = helper.make_model(
        graph,
        functions=[body(operator, diagonal, one_token, several) for operator in operators],
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        ir_version=IR_VERSION,
        producer_name="lucid-deploy",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def body(
    operator: Operator, diagonal: bool = False, one_token: bool = False, several: bool = False
) -> onnx.FunctionProto:
    """Return an operator's body in standard operators; bodies of operators that no artifact has are made here."""
    if operator.name in FUNCTIONS:
        return function_proto(operator.name, training_diagonal=diagonal, one_token=one_token, several=several)
    return _scatter() if operator is table.SCATTER_ROW else _stored_decode(operator, diagonal)


def _stored_decode(operator: Operator, diagonal: bool) -> onnx.FunctionProto:
    """Return the body of decoding over a cache in fewer bits: dequantize K and Y, then run DecodeAttention's body."""
    function = function_proto(table.DECODE_ATTENTION.name, training_diagonal=diagonal)
    nodes = []
    for name in ("K", "Y"):
        scaled = f"{name}_scale" in operator.input_names
        found = f"{name}_unscaled" if scaled else f"{name}_values"
        nodes.append(helper.make_node("Cast", [name], [found], to=onnx.TensorProto.FLOAT))
        if scaled:
            nodes.append(helper.make_node("Mul", [found, f"{name}_scale"], [f"{name}_values"]))
    for node in function.node:
        for place, name in enumerate(node.input):
            if name in ("K", "Y"):
                node.input[place] = f"{name}_values"
    nodes += [onnx.NodeProto.FromString(node.SerializeToString()) for node in function.node]
    return helper.make_function(
        DOMAIN,
        operator.name,
        list(operator.input_names),
        list(operator.output_names),
        nodes,
        list(function.opset_import),
        list(function.attribute),
        list(function.attribute_proto),
    )


def _scatter() -> onnx.FunctionProto:
    """Return the body of ScatterRow: ScatterElements, as older runtimes have no TensorScatter."""
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [3], [1, 2, 3])
    nodes = [
        helper.make_node("Constant", [], ["axes"], value=axes),
        helper.make_node("Unsqueeze", ["index", "axes"], ["of_rows"]),
        helper.make_node("Shape", ["row"], ["shape"]),
        helper.make_node("Expand", ["of_rows", "shape"], ["places"]),
        helper.make_node("ScatterElements", ["cache", "places", "row"], ["present"], axis=2),
    ]
    names = table.SCATTER_ROW
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_function(DOMAIN, names.name, list(names.input_names), list(names.output_names), nodes, opsets)
