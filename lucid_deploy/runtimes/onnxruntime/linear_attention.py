"""Let onnxruntime's own LinearAttention compute the delta rule, by a change to a graph that is made in memory.

``com.microsoft::LinearAttention`` is there from onnxruntime 1.25.1 on; its CPU kernel goes token by token, in float32.
It takes the place of the function's body, so that nodes stay as they are and the file does too. Sessions with the
library of kernels leave the body alone: the library's kernel is faster.
"""

from __future__ import annotations

import re

import onnx
from onnx import TensorProto, helper

from lucid_deploy.plugins.table import DELTA_RULE, DOMAIN, SCALE

_FIRST = (1, 25, 1)  # the first version that has the operator; the standard one of opset 27 is a function there
_CONTRIB = "com.microsoft"


def has_linear_attention(version: str) -> bool:
    """Return whether a version of onnxruntime has the operator."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3]) >= _FIRST


def use_linear_attention(model: onnx.ModelProto) -> bool:
    """Put onnxruntime's operator into the body of ``DeltaRule``.

    Requires: a graph as export writes it; weights need not be loaded.
    Result: the body is onnxruntime's operator between changes of layout, or the graph is as it was.

    Returns:
        Whether it was changed: not where there is no such function, or where nodes have several numbers of heads or an
        unknown one, which the operator needs as a number.
    """
    nodes = [node for node in model.graph.node if node.domain == DOMAIN and node.op_type == DELTA_RULE.name]
    places = [i for i, each in enumerate(model.functions) if (each.domain, each.name) == (DOMAIN, DELTA_RULE.name)]
    shapes = _shapes(model.graph)
    key, state = DELTA_RULE.place("key"), DELTA_RULE.place("state")
    known = {
        next((n for place in (key, state) if (n := _axis(shapes.get(node.input[place], []), 1))), None)
        for node in nodes
    }
    heads = known.pop() if len(known) == 1 else None
    if not places or heads is None:
        return False
    one_token = all(_axis(shapes.get(node.input[key], []), 2) == 1 for node in nodes)
    opset = next(item.version for item in model.functions[places[0]].opset_import if item.domain == "")
    model.functions[places[0]].CopyFrom(linear_attention_body(heads, one_token, opset))
    if not any(item.domain == _CONTRIB for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    return True


def linear_attention_body(heads: int, one_token: bool, opset: int) -> onnx.FunctionProto:
    """Return the body of ``DeltaRule`` in which onnxruntime's operator computes."""
    nodes = [
        *_packed("query", one_token),
        *_packed("key", one_token),
        *_packed("value", one_token),
        helper.make_node("Transpose", ["log_decay"], ["decay"], perm=[0, 2, 1]),
        helper.make_node("Cast", ["beta"], ["beta_float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["beta_float"], ["rate"], perm=[0, 2, 1]),
    ]
    inputs = ["query_packed", "key_packed", "value_packed", "state", "decay", "rate"]
    attention = helper.make_node("LinearAttention", inputs, ["packed", "new_state"], domain=_CONTRIB)
    numbers = {"q_num_heads": heads, "kv_num_heads": heads}
    attention.attribute.extend(helper.make_attribute(name, number) for name, number in numbers.items())
    attention.attribute.append(helper.make_attribute("update_rule", "gated_delta"))
    attention.attribute.append(
        onnx.AttributeProto(name="scale", ref_attr_name=SCALE.name, type=onnx.AttributeProto.FLOAT)
    )
    nodes.append(attention)
    if one_token:
        nodes.append(helper.make_node("Shape", ["value"], ["shape"]))
        nodes.append(helper.make_node("Reshape", ["packed", "shape"], ["rows"]))
    else:
        nodes += _constant("by_head", [0, 0, heads, -1])
        nodes.append(helper.make_node("Reshape", ["packed", "by_head"], ["by_token"]))
        nodes.append(helper.make_node("Transpose", ["by_token"], ["rows"], perm=[0, 2, 1, 3]))
    nodes.append(helper.make_node("CastLike", ["rows", "value"], ["output"]))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(_CONTRIB, 1)]
    names = list(DELTA_RULE.input_names), list(DELTA_RULE.output_names)
    return helper.make_function(DOMAIN, DELTA_RULE.name, *names, nodes, opsets, [SCALE.name])


def _packed(name: str, one_token: bool) -> list[onnx.NodeProto]:
    """Return the nodes from (batch, heads, tokens, width) to (batch, tokens, heads · width) in float32."""
    nodes = [helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT)]
    if one_token:
        nodes += _constant(f"{name}_shape", [0, 1, -1])
        nodes.append(helper.make_node("Reshape", [f"{name}_float", f"{name}_shape"], [f"{name}_packed"]))
        return nodes
    nodes.append(helper.make_node("Transpose", [f"{name}_float"], [f"{name}_turned"], perm=[0, 2, 1, 3]))
    nodes += _constant(f"{name}_shape", [0, 0, -1])
    nodes.append(helper.make_node("Reshape", [f"{name}_turned", f"{name}_shape"], [f"{name}_packed"]))
    return nodes


def _constant(name: str, values: list[int]) -> list[onnx.NodeProto]:
    return [helper.make_node("Constant", [], [name], value_ints=values)]


def _shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """Return the known shapes of values, 0 for an axis that is not known beforehand."""
    infos = (*graph.value_info, *graph.input)
    return {info.name: [axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in infos}


def _axis(shape: list[int], axis: int) -> int:
    return shape[axis] if len(shape) > axis else 0
