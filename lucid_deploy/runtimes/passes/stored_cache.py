"""Let attention read a cache as it is stored.

Where the cache has another type than the model, an artifact converts all of it in every step, in standard operators,
before ``DecodeAttention``. Our libraries have operators that take the stored tensors instead: onnxruntime's those for
float16 and int8, TensorRT's that for fp8.

====================================================  =====================================================
in the file, for K and for Y                          in memory
====================================================  =====================================================
``Cast(float16 input)``                               ``DecodeAttentionFloat16(Q, K_new, V_new, K, Y, mask)``
``Mul(Cast(int8 input), scale input)`` [``Cast``]     ``DecodeAttentionInt8(Q, K_new, V_new, K, Y, K_scale,
                                                      Y_scale, mask)``
``Mul(Cast(fp8 input), scale input)`` [``Cast``]      ``DecodeAttentionFloat8(…)``, of the same tensors
====================================================  =====================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx
from onnx import TensorProto

from lucid_deploy.plugins.table import (
    DECODE_ATTENTION,
    DECODE_ATTENTION_FLOAT8,
    DECODE_ATTENTION_FLOAT16,
    DECODE_ATTENTION_INT8,
    DOMAIN,
    Operator,
)
from lucid_deploy.runtimes.passes.editing import cast_type, nodes_of, remove_unread

_K, _MASK = DECODE_ATTENTION.place("K"), DECODE_ATTENTION.place("mask")
_SCALED = {TensorProto.INT8: DECODE_ATTENTION_INT8, TensorProto.FLOAT8E4M3FN: DECODE_ATTENTION_FLOAT8}


@dataclass(frozen=True)
class _StoredTensor:
    """What K or Y is converted from: an input of the graph, its scales, and the nodes between, last to first."""

    operator: Operator  # reads such tensors
    rows: str
    scale: str | None
    nodes: tuple[onnx.NodeProto, ...]


def read_as_stored(model: onnx.ModelProto) -> list[str]:
    """Put operators that read the stored cache in the place of ``DecodeAttention`` and the conversions before it.

    Requires: a decode graph whose cache has another type than the model.
    Result: every ``DecodeAttention`` is changed, and nothing is returned; or none is, and the reasons are returned. The
    new operators compute the same, except that an int8 row's values, and an fp8 row's of K, are not rounded to the
    model's type in between. Conversions that something else reads stay.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    inputs = {value.name: value.type.tensor_type for value in graph.input}
    attentions = nodes_of(graph, DOMAIN, DECODE_ATTENTION.name)
    if not attentions:
        return [f"there is no {DECODE_ATTENTION.name}"]
    found, obstacles = [], []
    for node in attentions:
        k, y = (_trace_back(name, makers, inputs) for name in node.input[_K:_MASK])
        if k is None or y is None or k.operator is not y.operator:
            names = " and ".join(node.input[_K:_MASK])
            obstacles.append(f"{names} are not converted from the cache in a way that is known")
        else:
            found.append((node, k, y))
    if obstacles:
        return obstacles
    for node, k, y in found:
        scales = [scale for scale in (k.scale, y.scale) if scale is not None]
        node.input[_K:] = [k.rows, y.rows, *scales, node.input[_MASK]]
        node.op_type = k.operator.name
    remove_unread(graph, [made for _, k, y in found for part in (k, y) for made in part.nodes])
    return []


def _trace_back(
    name: str, makers: dict[str, onnx.NodeProto], inputs: dict[str, onnx.TypeProto.Tensor]
) -> _StoredTensor | None:
    """Go back from K or Y of the operator to the graph's inputs; None where anything is not exactly as expected."""
    nodes = []
    node = makers.get(name)
    if node is not None and cast_type(node) in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        nodes.append(node)  # such a model rounds the products to its type
        node = makers.get(node.input[0])
    if node is not None and (node.domain, node.op_type) == ("", "Mul"):
        cast, scale = makers.get(node.input[0]), node.input[1]
        if cast is None or cast_type(cast) != TensorProto.FLOAT:
            return None
        operator = _reader_of_scaled(inputs, cast.input[0], scale)
        return None if operator is None else _StoredTensor(operator, cast.input[0], scale, (*nodes, node, cast))
    if nodes or node is None or cast_type(node) != TensorProto.FLOAT:
        return None
    rows = node.input[0]
    if not _is_input(inputs, rows, TensorProto.FLOAT16):
        return None
    return _StoredTensor(DECODE_ATTENTION_FLOAT16, rows, None, (node,))


def _reader_of_scaled(inputs: dict[str, onnx.TypeProto.Tensor], rows: str, scale: str) -> Operator | None:
    """Return what reads two graph inputs, rows ``(B, KV, T, D)`` and their float32 scales ``(B, KV, T, 1)``."""
    operator = next((each for kind, each in _SCALED.items() if _is_input(inputs, rows, kind)), None)
    if operator is None or not _is_input(inputs, scale, TensorProto.FLOAT):
        return None
    of_rows, of_scale = inputs[rows].shape.dim, inputs[scale].shape.dim
    return operator if list(of_rows[:3]) == list(of_scale[:3]) and of_scale[3].dim_value == 1 else None


def _is_input(inputs: dict[str, onnx.TypeProto.Tensor], name: str, kind: int) -> bool:
    """Whether a tensor is a graph input of a type and of four axes."""
    return name in inputs and inputs[name].elem_type == kind and len(inputs[name].shape.dim) == 4
