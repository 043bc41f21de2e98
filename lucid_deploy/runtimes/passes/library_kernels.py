"""Replace nodes that onnxruntime computes more slowly by operators of our library of CPU kernels.

===================================================  ==================================================
in the file                                          in memory
===================================================  ==================================================
``O, Y_new = DecodeAttention(Q, K_new, V_new, …)``   ``O, K_present, Y_present =``
``K_present = Concat(K, K_new)``                     ``DecodeAttentionGrowing(Q, K_new, V_new, …)``
``Y_present = Concat(Y, Y_new)``
``Attention(Q, Concat(K, K_new), …)``, one token      ``CachedAttention(Q, K_new, V_new, K, V, mask)``
with ``TensorScatter``, ``ScatterElements`` too      the same
``MatMul(X, weight)``                                ``WeightMatMul(X, weight)``
``MatMul(X, Cast(float16 weight))``, float32         ``WeightMatMulFloat16(X, float16 weight)``
``Gemm(X, weight)``, ``transB`` 1: a tied head       ``WeightMatMulTransposed(X, weight)``
``Gemm(X, Cast(float16 weight))``, the same          ``WeightMatMulTransposedFloat16(X, float16 weight)``
``MatMulNBits(X, W, scales)``, accuracy level 4      ``QuantizedMatMul(X, W, scales)``
``MatMulNBits(X, W, scales, zero_points)``, level 4  ``QuantizedMatMulZeroPoints(X, W, scales, zero_points)``
``MatMulNBits(X, W, scales) + sums(X) · offsets``    ``QuantizedMatMulOffsets(X, W, scales, offsets)``
the same with weights of experts                     ``QuantizedExpertMatMulOffsets(X, expert, W, …)``
``Add(Y, X · Gather(A, ids) · Gather(B, ids))``      ``AdapterMatMul(Y, X, A, B, ids)``
===================================================  ==================================================
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import onnx
from onnx import TensorProto

from lucid_deploy.plugins.table import (
    ADAPTER_MATMUL,
    CACHED_ATTENTION,
    DECODE_ATTENTION,
    DECODE_ATTENTION_GROWING,
    DOMAIN,
    EXPERT_MATMUL,
    QUANTIZED_EXPERT_MATMUL,
    QUANTIZED_EXPERT_MATMUL_OFFSETS,
    QUANTIZED_MATMUL,
    QUANTIZED_MATMUL_OFFSETS,
    QUANTIZED_MATMUL_ZERO_POINTS,
    VERSION,
    WEIGHT_MATMUL,
    WEIGHT_MATMUL_FLOAT16,
    WEIGHT_MATMUL_TRANSPOSED,
    WEIGHT_MATMUL_TRANSPOSED_FLOAT16,
)
from lucid_deploy.runtimes.passes.editing import (
    attributes_of,
    cast_type,
    declare,
    nodes_of,
    read_names,
    remove_unread,
)

_CONTRIB = "com.microsoft"
_TOKENS = 2  # the token axis of a cached tensor
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)
_NEW_ROWS = {"Concat": 1, "TensorScatter": 1, "ScatterElements": 2}  # which input holds the new rows, after the cache
_BY = {  # an operator's replacement for a weight of its own type, and for a float16 weight cast to float32
    "MatMul": (WEIGHT_MATMUL, WEIGHT_MATMUL_FLOAT16),
    "Gemm": (WEIGHT_MATMUL_TRANSPOSED, WEIGHT_MATMUL_TRANSPOSED_FLOAT16),
}
_WITH_OFFSETS = {  # a product's replacement that also adds offsets, and the file's operator that multiplies by offsets
    QUANTIZED_MATMUL.name: (QUANTIZED_MATMUL_OFFSETS, "MatMul"),
    QUANTIZED_EXPERT_MATMUL.name: (QUANTIZED_EXPERT_MATMUL_OFFSETS, EXPERT_MATMUL.name),
}
_ROUNDS_INPUTS = 4  # accuracy_level of a MatMulNBits that rounds its inputs to int8
_BLOCK_STEP, _MOST_IN_BLOCK = 16, 1 << 15  # block sizes of the library: multiples of the first, up to the second


def use_growing_attention(model: onnx.ModelProto) -> bool:
    """Let attention also write the extended cache, on all threads; return whether a node was changed.

    onnxruntime's ``Concat`` copies on one thread, and reads the cache again that attention has just read.

    Result: a node is changed if its new rows are appended to the cache unconverted, and nothing else in the graph reads
    the new rows of Y or the grown K; static caches and those stored in another type stay as they were.
    """
    graph = model.graph
    read, given = Counter(read_names(graph)), {output.name for output in graph.output}
    joins = [node for node in nodes_of(graph, "", "Concat") if attributes_of(node)["axis"] in (_TOKENS, _TOKENS - 4)]
    grown = {tuple(node.input): node for node in joins}
    removed = []
    for node in nodes_of(graph, DOMAIN, DECODE_ATTENTION.name):
        key, cached, cached_y = (node.input[DECODE_ATTENTION.place(name)] for name in ("K_new", "K", "Y"))
        attended, new = node.output
        keys, values = grown.get((cached, key)), grown.get((cached_y, new))
        if keys is None or values is None or read[new] != 1:
            continue
        # The grown keys are now made later, so no node may read them: their one use is as an output of the graph.
        if read[keys.output[0]] != 1 or keys.output[0] not in given:
            continue
        node.op_type = DECODE_ATTENTION_GROWING.name
        node.output[:] = [attended, keys.output[0], values.output[0]]
        removed += [keys, values]
        del grown[cached, key]  # a second node with the same cache must not give the same output
    for node in removed:
        graph.node.remove(node)
    return bool(removed)


def use_cached_attention(model: onnx.ModelProto) -> bool:
    """Let the library compute standard attention of one query token; return whether a node was changed.

    onnxruntime's operator multiplies by all rows of a static cache's buffers, unused ones included.

    Result: ``Attention`` nodes with one query per head, a mask ``(batch, 1, 1, tokens)``, values as wide as keys, the
    scale 1/√d, and K and V made by joining the cache and the new row are changed. The new nodes read cache and new row
    separately, so that :mod:`~lucid_deploy.runtimes.passes.stored_cache` can let them read the cache as it is stored.
    In a float16 model the casts around the node are removed: the library computes float16 in float32.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    infos = (*graph.value_info, *graph.output, *graph.input)
    types = {info.name: info.type.tensor_type for info in infos}
    sizes = {name: [axis.dim_value for axis in kind.shape.dim] for name, kind in types.items()}
    unread: list[onnx.NodeProto] = []
    for node in nodes_of(graph, "", "Attention"):
        if len([name for name in node.input if name]) != 4 or len(node.output) != 1:
            continue
        (query, *rows, output), around = _without_casts(node, graph, makers, types)
        size = sizes.get(query, [])
        if len(size) != 4 or size[2] != 1 or not size[3]:
            continue
        if any(len(sizes.get(name, ())) != 4 or sizes[name][3] != size[3] for name in rows):
            continue
        given = attributes_of(node)
        plain = math.isclose(given.get("scale", size[3] ** -0.5), size[3] ** -0.5, rel_tol=1e-6)
        if not plain or given.get("softcap") or given.get("is_causal") or given.get("qk_matmul_output_mode"):
            continue
        keys, values = (_past_and_new(makers.get(name)) for name in rows)
        mask = _mask_with_new(makers.get(node.input[3]), makers)
        if keys is None or values is None or len(sizes.get(mask, ())) != 2:
            continue  # a window's mask has other axes
        kinds = [types[name].elem_type if name in types else None for name in (query, mask)]
        if kinds[0] not in _FLOATS or kinds[1] != TensorProto.BOOL:
            continue
        unread += [*around[:-1], *(makers[name] for name in (*rows, node.input[3]))]
        for cast in around[-1:]:
            graph.node.remove(cast)  # the node now computes its output
        node.input[:], node.output[:] = [query, keys[1], values[1], keys[0], values[0], mask], [output]
        node.op_type, node.domain = CACHED_ATTENTION.name, DOMAIN
        del node.attribute[:]
    if unread:
        declare(model, DOMAIN, VERSION)
        remove_unread(graph, unread)
    return bool(unread)


def _without_casts(
    node: onnx.NodeProto, graph: onnx.GraphProto, makers: dict[str, onnx.NodeProto], types: dict[str, Any]
) -> tuple[list[str], list[onnx.NodeProto]]:
    """Return the names of Q, K, V and O of an ``Attention`` node, and the casts around it in a float16 model, O's last.

    If there are such casts, the names are those outside of them; otherwise the list of casts is empty.
    """
    before = [makers.get(name) for name in node.input[:3]]
    after = [each for each in graph.node if node.output[0] in each.input]
    if len(after) != 1:
        return [*node.input[:3], node.output[0]], []
    casts = [each for each in (*before, *after) if each is not None and cast_type(each) is not None]
    sources = [types[each.input[0]].elem_type for each in casts[:3] if each.input[0] in types]
    if len(casts) != 4 or sources != [TensorProto.FLOAT16] * 3 or cast_type(casts[3]) != TensorProto.FLOAT16:
        return [*node.input[:3], node.output[0]], []
    return [*(each.input[0] for each in casts[:3]), casts[3].output[0]], casts


def _past_and_new(node: onnx.NodeProto | None) -> tuple[str, str] | None:
    """Return the names of a cached tensor and of its new rows, given the node that joins them."""
    if node is None or node.domain or node.op_type not in _NEW_ROWS:
        return None
    if attributes_of(node)["axis"] not in (_TOKENS, _TOKENS - 4):
        return None  # for example the two halves of rotated keys
    return node.input[0], node.input[_NEW_ROWS[node.op_type]]


def _mask_with_new(node: onnx.NodeProto | None, makers: dict[str, onnx.NodeProto]) -> str:
    """Return the name of the mask ``(batch, past + 1)`` behind an ``Attention``'s mask; empty if it is not found.

    Where the new row is written into a buffer before it is read, ``Attention``'s own mask has a column for each row of
    the buffer only: ``Slice`` drops the last column, and ``Or`` marks the new row's.
    """
    if node is None or node.op_type != "Unsqueeze":
        return ""
    added = makers.get(node.input[0])
    if added is None or added.op_type != "Or":
        return str(node.input[0])
    past = makers.get(added.input[0])
    return str(past.input[0]) if past is not None and past.op_type == "Slice" else ""


def use_weight_matmul(model: onnx.ModelProto) -> bool:
    """Let the library multiply by float weights, in the file's layout; return whether a node was changed.

    onnxruntime's MatMul is made for many rows, needs a packed copy of the weight, and converts float16 weights to
    float32 when the graph is loaded. Decoding, in batches too, and verifying drafts have few rows.

    Result: nodes that multiply by an initializer in float32 or float16 are changed; casts of weights are removed unless
    something else reads them.
    """
    graph = model.graph
    weights = {each.name: each.data_type for each in graph.initializer if len(each.dims) == 2}
    casts = {
        node.output[0]: node
        for node in nodes_of(graph, "", "Cast")
        if cast_type(node) == TensorProto.FLOAT and weights.get(node.input[0]) == TensorProto.FLOAT16
    }
    changed = False
    for node in graph.node:
        if node.domain or node.op_type not in _BY or len(node.input) != 2 or node.input[0] in weights:
            continue  # a Gemm with two inputs is a tied head's, with transB 1
        same, narrower = _BY[node.op_type]
        if weights.get(node.input[1]) in _FLOATS:
            operator = same
        elif node.input[1] in casts:
            operator, node.input[1] = narrower, casts[node.input[1]].input[0]
        else:
            continue
        node.op_type, node.domain, changed = operator.name, DOMAIN, True
        del node.attribute[:]
    if changed:
        declare(model, DOMAIN, VERSION)
        remove_unread(graph, casts.values())  # otherwise onnxruntime would still compute them
    return changed


def use_adapter_matmul(model: onnx.ModelProto) -> bool:
    """Let the library apply each row's adapter without copying its matrices; return whether a node was changed.

    Result: where ``Add(Y, MatMul(MatMul(X, Gather(A, ids)), Gather(B, ids)))`` reads A and B among the initializers,
    and nothing else reads the intermediate values, one node computes this, and skips rows without an adapter.
    """
    graph = model.graph
    stacked = {each.name for each in graph.initializer if len(each.dims) == 3 and each.data_type in _FLOATS}
    makers = {name: node for node in graph.node for name in node.output}
    read, changed = Counter(read_names(graph)), False

    def made_by(name: str, operator: str) -> onnx.NodeProto | None:
        node = makers.get(name)
        return node if node is not None and (node.domain, node.op_type, read[name]) == ("", operator, 1) else None

    for node in nodes_of(graph, "", "Add"):
        up = made_by(node.input[1], "MatMul")
        down = None if up is None else made_by(up.input[0], "MatMul")
        if up is None or down is None:
            continue
        a, b = made_by(down.input[1], "Gather"), made_by(up.input[1], "Gather")
        if a is None or b is None or a.input[1] != b.input[1] or not {a.input[0], b.input[0]} <= stacked:
            continue
        node.input[:] = [node.input[0], down.input[0], a.input[0], b.input[0], a.input[1]]
        node.op_type, node.domain, changed = ADAPTER_MATMUL.name, DOMAIN, True
        for between in (up, down, a, b):
            graph.node.remove(between)
    if changed:
        declare(model, DOMAIN, VERSION)
    return changed


def use_quantized_matmul(model: onnx.ModelProto) -> bool:
    """Let the library multiply inputs rounded to int8 by block-quantized weights; return whether a node was changed.

    All graphs share one packed copy of a weight, while onnxruntime makes one for each graph; and multiplying many rows
    takes half the time.

    Result: ``MatMulNBits`` nodes that round inputs and have whole blocks of a multiple of 16 values are changed. The
    new nodes also add the offsets, for which the file has a second matrix multiplication.
    """
    tensors, casts = _stored(model.graph)
    found = [node for node in nodes_of(model.graph, _CONTRIB, "MatMulNBits") if _is_in_blocks(node, tensors)]
    for node in found:
        with_zeros = len(node.input) == len(QUANTIZED_MATMUL_ZERO_POINTS.inputs)
        node.op_type = (QUANTIZED_MATMUL_ZERO_POINTS if with_zeros else QUANTIZED_MATMUL).name
        node.domain = DOMAIN
        del node.attribute[:]
    if found:
        declare(model, DOMAIN, VERSION)
        _take_offsets(model.graph, tensors)
        remove_unread(model.graph, casts)
    return bool(found)


def use_expert_offsets(model: onnx.ModelProto) -> bool:
    """Let the library's MatMuls of quantized experts add the blocks' offsets too; return whether a node was changed."""
    tensors, casts = _stored(model.graph)
    changed = _take_offsets(model.graph, tensors)
    remove_unread(model.graph, casts)
    return changed


def _stored(graph: onnx.GraphProto) -> tuple[dict[str, TensorProto], list[onnx.NodeProto]]:
    """Return the initializers by name, float16 ones also by the outputs of ``Cast`` nodes on them, and these nodes."""
    tensors = {each.name: each for each in graph.initializer}
    casts = [
        node
        for node in nodes_of(graph, "", "Cast")
        if node.input[0] in tensors and tensors[node.input[0]].data_type == TensorProto.FLOAT16
    ]
    return tensors | {node.output[0]: tensors[node.input[0]] for node in casts}, casts


def _take_offsets(graph: onnx.GraphProto, tensors: dict[str, TensorProto]) -> bool:
    """Let products also add the blocks' offsets, which the file does in a second product with sums of X's blocks.

    ``tensors`` are those of :func:`_stored`. Returns whether a node was changed.
    """
    makers = {name: node for node in graph.node for name in node.output}
    read, unread = Counter(read_names(graph)), []
    for total in nodes_of(graph, "", "Add"):
        product, share = (makers.get(name) for name in total.input)
        if product is None or share is None or product.op_type not in _WITH_OFFSETS or product.domain != DOMAIN:
            continue
        operator, beside = _WITH_OFFSETS[product.op_type]
        if read[product.output[0]] != 1 or read[share.output[0]] != 1 or share.op_type != beside:
            continue
        if product.input[1:-2] != share.input[1:-1]:  # both nodes must choose the same experts, if any
            continue
        offsets, scales = tensors.get(share.input[-1]), tensors.get(product.input[-1])
        sums = makers.get(share.input[0])
        if offsets is None or scales is None or sums is None or sums.op_type != "ReduceSum":
            continue
        product.input[-1:] = [scales.name, offsets.name]
        product.op_type, product.output[0] = operator.name, total.output[0]
        graph.node.remove(total)
        unread += [share, sums, makers[sums.input[0]]]
    remove_unread(graph, unread)
    return bool(unread)


def _is_in_blocks(node: onnx.NodeProto, tensors: dict[str, TensorProto]) -> bool:
    """Return whether the library has a kernel for this ``MatMulNBits``: whole blocks, rounded inputs."""
    given, scales = attributes_of(node), tensors.get(node.input[2])
    if given["accuracy_level"] != _ROUNDS_INPUTS or scales is None or scales.data_type not in _FLOATS:
        return False
    block = given["block_size"]
    return block % _BLOCK_STEP == 0 and block <= _MOST_IN_BLOCK and given["K"] % block == 0
