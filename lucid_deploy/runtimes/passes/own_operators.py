"""Let onnxruntime's own operators compute a part or read a weight: rotary embeddings, the delta rule, NVFP4."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lucid_deploy.artifact.quantized_bytes import E2M1, E4M3
from lucid_deploy.plugins.table import DELTA_RULE, DOMAIN, SCALE
from lucid_deploy.runtimes.passes.editing import declare, nodes_of, remove_unread

_FIRST = (1, 25, 1)  # the first version that has LinearAttention; the standard one of opset 27 is a function there
_CONTRIB = "com.microsoft"
_HEADS_AXIS = "axis_of_heads"


def use_rotary_embedding(model: onnx.ModelProto) -> bool:
    """Let one node rotate queries or keys, where the file has eight; return whether one does.

    A step of one token spends much of its time between nodes.

    Result: ``Concat(a · cos − b · sin, b · cos + a · sin)`` with ``a, b = Split(X)`` is
    ``RotaryEmbedding(X, cos, sin)``, where cos and sin are ``(batch, 1, tokens, width / 2)``.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    shapes = {info.name: [axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in graph.value_info}
    squeezed: dict[str, str] = {}
    for node in nodes_of(graph, "", "Concat"):
        sums = [makers.get(name) for name in node.input]
        if [None if each is None else each.op_type for each in sums] != ["Sub", "Add"]:
            continue
        products = [makers.get(name) for each in sums if each is not None for name in each.input]
        factors = [[*each.input] for each in products if each is not None and each.op_type == "Mul"]
        split = makers.get(factors[0][0]) if len(factors) == 4 else None
        if split is None or split.op_type != "Split" or len(split.output) != 2:
            continue
        (a, cos), (b, sin) = factors[:2]
        known = all(len(shapes.get(name, ())) == 4 and shapes[name][1] == 1 for name in (cos, sin))
        if [a, b] != [*split.output] or factors[2:] != [[b, cos], [a, sin]] or not known:
            continue
        for name in (cos, sin):
            if name not in squeezed:
                squeezed[name] = f"{name}_without_heads"
                place = [*graph.node].index(node)
                graph.node.insert(place, helper.make_node("Squeeze", [name, _HEADS_AXIS], [squeezed[name]]))
        node.op_type, node.input[:] = "RotaryEmbedding", [split.input[0], squeezed[cos], squeezed[sin]]
        del node.attribute[:]
        remove_unread(graph, [each for each in (*sums, *products, split) if each is not None])
    if squeezed:
        graph.initializer.append(helper.make_tensor(_HEADS_AXIS, TensorProto.INT64, [1], [1]))
    return bool(squeezed)


def has_linear_attention(version: str) -> bool:
    """Return whether a version of onnxruntime has ``com.microsoft::LinearAttention``."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3]) >= _FIRST


def use_linear_attention(model: onnx.ModelProto) -> bool:
    """Put onnxruntime's ``LinearAttention`` into the body of ``DeltaRule``.

    Its CPU kernel goes token by token, in float32. The library's kernel is faster, so with that the body stays.

    Result: the body is onnxruntime's operator between changes of layout; nodes stay as they are. Nothing changes, and
    False is returned, where nodes have several numbers of heads or an unknown one, which the operator needs.
    """
    nodes = nodes_of(model.graph, DOMAIN, DELTA_RULE.name)
    bodies = [each for each in model.functions if (each.domain, each.name) == (DOMAIN, DELTA_RULE.name)]
    infos = (*model.graph.value_info, *model.graph.input)
    shapes = {info.name: [axis.dim_value for axis in info.type.tensor_type.shape.dim] for info in infos}

    def size(name: str, axis: int) -> int:
        shape = shapes.get(name, [])
        return shape[axis] if len(shape) > axis else 0  # 0: not known beforehand

    key, state = DELTA_RULE.place("key"), DELTA_RULE.place("state")
    heads = {size(node.input[key], 1) or size(node.input[state], 1) for node in nodes}
    if not bodies or len(heads) != 1 or 0 in heads:
        return False
    one_token = all(size(node.input[key], 2) == 1 for node in nodes)
    opset = next(item.version for item in bodies[0].opset_import if item.domain == "")
    bodies[0].CopyFrom(_linear_attention_body(heads.pop(), one_token, opset))
    declare(model, _CONTRIB, 1)
    return True


def _linear_attention_body(heads: int, one_token: bool, opset: int) -> onnx.FunctionProto:
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
    settings: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads, "update_rule": "gated_delta"}
    attention = helper.make_node("LinearAttention", inputs, ["packed", "new_state"], domain=_CONTRIB, **settings)
    scale = onnx.AttributeProto(name="scale", ref_attr_name=SCALE.name, type=onnx.AttributeProto.FLOAT)
    attention.attribute.append(scale)
    nodes.append(attention)
    if one_token:
        nodes.append(helper.make_node("Shape", ["value"], ["shape"]))
        nodes.append(helper.make_node("Reshape", ["packed", "shape"], ["rows"]))
    else:
        nodes.append(_numbers("by_head", [0, 0, heads, -1]))
        nodes.append(helper.make_node("Reshape", ["packed", "by_head"], ["by_token"]))
        nodes.append(helper.make_node("Transpose", ["by_token"], ["rows"], perm=[0, 2, 1, 3]))
    nodes.append(helper.make_node("CastLike", ["rows", "value"], ["output"]))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid(_CONTRIB, 1)]
    names = list(DELTA_RULE.input_names), list(DELTA_RULE.output_names)
    return helper.make_function(DOMAIN, DELTA_RULE.name, *names, nodes, opsets, [SCALE.name])


def _packed(name: str, one_token: bool) -> list[onnx.NodeProto]:
    """Return the nodes from (batch, heads, tokens, width) to (batch, tokens, heads · width) in float32."""
    wide, shape, turned = f"{name}_float", f"{name}_shape", f"{name}_turned"
    nodes = [helper.make_node("Cast", [name], [wide], to=TensorProto.FLOAT)]
    if one_token:  # then a transposition moves nothing
        nodes.append(_numbers(shape, [0, 1, -1]))
    else:
        nodes.append(helper.make_node("Transpose", [wide], [turned], perm=[0, 2, 1, 3]))
        nodes.append(_numbers(shape, [0, 0, -1]))
    nodes.append(helper.make_node("Reshape", [wide if one_token else turned, shape], [f"{name}_packed"]))
    return nodes


def _numbers(name: str, values: list[int]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value_ints=values)


# Every number of E2M1 is one of E4M3: its code there, by the code of E2M1.
_CODES = np.array([np.flatnonzero((value == E4M3) & (np.signbit(value) == np.signbit(E4M3)))[0] for value in E2M1])
_CODES = _CODES.astype(np.uint8)


def retype_fp4(model: onnx.ModelProto) -> bool:
    """Declare weights in E2M1, which onnxruntime's CPU has no kernel for, as E4M3; return whether there are any.

    Result: ``DequantizeLinear`` gives the same weights, once the session gives their codes, :func:`widened`.
    """
    found = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT4E2M1]
    for tensor in found:
        tensor.data_type = TensorProto.FLOAT8E4M3FN
    return bool(found)


def widened(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return codes of E4M3 for ``count`` codes of E2M1, which lie two in a byte, the lower half first."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:count]
    found: NDArray[np.uint8] = _CODES[halves]
    return found
