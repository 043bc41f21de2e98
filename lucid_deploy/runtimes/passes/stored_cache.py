"""Let attention read the cache in the type in which it is stored.

If the cache has another type than the model, graphs convert the whole cache in every step with standard operators,
before ``DecodeAttention`` or ``CachedAttention``. Our libraries have operators that take the stored tensors instead:
the library for onnxruntime in float16 and int8, the one for TensorRT in fp8.

====================================================  =====================================================
in the file, for K and for Y                          in memory
====================================================  =====================================================
``Cast(float16 input)``                               ``DecodeAttentionFloat16(Q, K_new, V_new, K, Y, mask)``
``Mul(Cast(int8 input), scale input)`` [``Cast``]     ``DecodeAttentionInt8(Q, K_new, V_new, K, Y, K_scale,
                                                      Y_scale, mask)``
``Mul(Cast(fp8 input), scale input)`` [``Cast``]      ``DecodeAttentionFloat8(…)``, of the same tensors
====================================================  =====================================================

``CachedAttention`` is likewise replaced by ``CachedAttentionFloat16`` and ``CachedAttentionInt8``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from lucid_deploy.errors import LucidError
from lucid_deploy.plugins.table import (
    CACHED_ATTENTION,
    CACHED_ATTENTION_FLOAT16,
    CACHED_ATTENTION_INT8,
    DECODE_ATTENTION,
    DECODE_ATTENTION_FLOAT8,
    DECODE_ATTENTION_FLOAT16,
    DECODE_ATTENTION_INT8,
    DOMAIN,
    Operator,
)
from lucid_deploy.runtimes.passes.editing import cast_type, nodes_of, remove_unread

_K, _MASK = DECODE_ATTENTION.place("K"), DECODE_ATTENTION.place("mask")
_FLOAT16, _INT8 = (TensorProto.FLOAT16, None), (TensorProto.INT8, TensorProto.FLOAT)
_FLOAT8 = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT)
_READERS: dict[str, dict[tuple[int, int | None], Operator]] = {  # by the types of the rows and of their scales, if any
    DECODE_ATTENTION.name: {
        _FLOAT16: DECODE_ATTENTION_FLOAT16,
        _INT8: DECODE_ATTENTION_INT8,
        _FLOAT8: DECODE_ATTENTION_FLOAT8,
    },
    CACHED_ATTENTION.name: {_FLOAT16: CACHED_ATTENTION_FLOAT16, _INT8: CACHED_ATTENTION_INT8},
}


@dataclass(frozen=True)
class _StoredTensor:
    """The graph inputs from which K or Y is converted, and the converting nodes, last to first."""

    types: tuple[int, int | None]  # of the rows and of their scales
    rows: str  # name of the input with the rows
    scales: list[str]  # name of the input with their scales, if there is one
    nodes: list[onnx.NodeProto]


def read_as_stored(model: onnx.ModelProto, path: Path) -> bool:
    """Let attention read the cache as it is stored, without conversions; return whether a node was changed.

    Requires: a decode or verify graph whose cache has another type than the model; ``path``: its file, for errors.
    Result: every ``DecodeAttention`` and ``CachedAttention`` is changed. The new operators compute the same, but do not
    first round K and Y of an int8 cache, or K of an fp8 cache, to the model's type. Conversions that something else
    reads stay.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    types = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    converted = []
    for node in (each for name in _READERS for each in nodes_of(graph, DOMAIN, name)):
        try:
            k, y = (_trace_back(name, makers, types) for name in node.input[_K:_MASK])
            operator = _READERS[node.op_type][k.types]
        except KeyError as error:
            raise LucidError(
                f"{path} is not as lucid-deploy export writes it: {' and '.join(node.input[_K:_MASK])} are not "
                "converted from the cache in a known way. Export it again."
            ) from error
        node.op_type = operator.name
        node.input[_K:] = [k.rows, y.rows, *k.scales, *y.scales, node.input[_MASK]]
        converted += [*k.nodes, *y.nodes]
    remove_unread(graph, converted)
    return bool(converted)


def _trace_back(name: str, makers: dict[str, onnx.NodeProto], types: dict[str, int]) -> _StoredTensor:
    """Follow K or Y of a node back to the graph's inputs, of the given ``types``; KeyError if other nodes make it."""
    nodes, scales = [makers[name]], []
    if cast_type(nodes[0]) in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        nodes.append(makers[nodes[0].input[0]])  # a half-precision model rounds the products to its type
    if nodes[-1].op_type == "Mul":
        scales.append(nodes[-1].input[1])
        nodes.append(makers[nodes[-1].input[0]])
    rows = nodes[-1].input[0]
    return _StoredTensor((types[rows], types[scales[0]] if scales else None), rows, scales, nodes)
