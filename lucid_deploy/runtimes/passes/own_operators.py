"""Rewrite graphs for onnxruntime's own operators: rotary embeddings in one node, and NVFP4 weights as E4M3."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from lucid_deploy.artifact.quantized_bytes import E2M1, E4M3
from lucid_deploy.runtimes.passes.editing import nodes_of, remove_unread

_HEADS_AXIS = "axis_of_heads"


def use_rotary_embedding(model: onnx.ModelProto) -> bool:
    """Replace the eight nodes of each rotary embedding by one ``RotaryEmbedding``; return whether any were replaced.

    When one token is decoded, the overhead per node is a large part of the time.

    Result: ``Concat(a · cos − b · sin, b · cos + a · sin)`` with ``a, b = Split(X)`` becomes
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


# E4M3 has every value of E2M1; this table maps each E2M1 code to the E4M3 code of the same value.
_CODES = np.array([np.flatnonzero((value == E4M3) & (np.signbit(value) == np.signbit(E4M3)))[0] for value in E2M1])
_CODES = _CODES.astype(np.uint8)


def retype_fp4(model: onnx.ModelProto) -> bool:
    """Declare weights in E2M1, which onnxruntime's CPU has no kernel for, as E4M3; return whether there are any.

    Result: ``DequantizeLinear`` gives the same weights if the session supplies codes of E4M3, from :func:`widened`.
    """
    found = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT4E2M1]
    for tensor in found:
        tensor.data_type = TensorProto.FLOAT8E4M3FN
    return bool(found)


def widened(packed: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Convert ``count`` E2M1 codes, two in a byte with the lower half first, to the E4M3 codes of the same values."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)[:count]
    found: NDArray[np.uint8] = _CODES[halves]
    return found
