"""Rewrite attention for TensorRT: standard ``Attention`` in the model's type, or ``MatMul`` and ``Softmax``."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from lucid_deploy.export.passes.editing import NodeChain, constant, integers, replace
from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DOMAIN

DECOMPOSABLE = "TRT_decomposable"  # an attribute that TensorRT-RTX's parser reads
_INT64, _BOOL = ir.DataType.INT64, ir.DataType.BOOL
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def standard_attention(model: ir.Model) -> bool:
    """Replace ``ai.lucid::CausalAttention`` by the standard ``Attention`` of opset 23.

    The operator's own body loops over blocks of growing width, and TensorRT's loops need loop-invariant shapes.
    Requires: nodes that share a mask have the same number of new tokens, as all layers of a graph do.
    Result: no ``CausalAttention`` node or function is left; a bool mask ``(B, 1, N, T)`` is made once for all layers.

    Returns:
        Whether there was such a node.
    """
    nodes = [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, CAUSAL_ATTENTION.name)]
    visible: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        query, key, value, mask = node.inputs
        assert query is not None and mask is not None
        if mask not in visible:
            chain = NodeChain(f"visible_{len(visible)}")
            visible[mask] = _visible(model.graph, chain, query, mask)
            model.graph.insert_before(node, chain.nodes)
        attention = ir.node("Attention", [query, key, value, visible[mask]])
        replace(model.graph, node, [attention])
    for signature in [key for key in model.functions if key[:2] == (DOMAIN, CAUSAL_ATTENTION.name)]:
        del model.functions[signature]
    return bool(nodes)


def _visible(graph: ir.Graph, chain: NodeChain, query: ir.Value, mask: ir.Value) -> ir.Value:
    """Add nodes that compute which token sees which, bool ``(B, 1, N, T)``.

    A new token sees the tokens before it that are not padding, and itself in any case.

    Args:
        query: ``(B, H, N, D)``.
        mask: Bool ``(B, T)``, T ≥ N.
    """
    zero, one = (constant(graph, f"visible.{name}", np.array(n, np.int64)) for n, name in enumerate(("zero", "one")))
    first = integers(graph, "visible.first", 0)

    def size(tensor: ir.Value, axis: int, name: str) -> ir.Value:
        shape = chain.add("Shape", [tensor], f"{name}_shape", {"start": axis, "end": axis + 1}, _INT64)
        return chain.add("Squeeze", [shape, first], name, dtype=_INT64)

    new, total = size(query, 2, "new"), size(mask, 1, "total")
    past = chain.add("Sub", [total, new], "past", dtype=_INT64)
    column = chain.add("Range", [zero, total, one], "column", dtype=_INT64)  # (T,)
    row = chain.add("Range", [past, total, one], "row_index", dtype=_INT64)
    row = chain.add("Unsqueeze", [row, integers(graph, "visible.last", 1)], "row", dtype=_INT64)  # (N, 1)
    token = chain.add("Unsqueeze", [mask, integers(graph, "visible.inner", 1, 2)], "token", dtype=_BOOL)  # (B, 1, 1, T)
    later = chain.add("Greater", [row, column], "later", dtype=_BOOL)
    earlier = chain.add("And", [later, token], "earlier", dtype=_BOOL)
    return chain.add("Or", [earlier, chain.add("Equal", [row, column], "itself", dtype=_BOOL)], "mask", dtype=_BOOL)


def half_attention(model: ir.Model) -> bool:
    """Bypass the casts to float32 around ``Attention`` in half-precision graphs.

    The graphs have these casts for the softmax. TensorRT's fused attention computes it in float32 whatever
    the type of its tensors, and TensorRT-RTX 1.7 fails on the form with casts (an internal error in its fusion).
    Requires: nothing; attention without such casts is left alone.
    Result: no ``Attention`` that only one node reads lies between casts from and to one half type.

    Returns:
        Whether there was such a node.
    """
    changed = False
    for node in _attentions(model):
        casts = [value.producer() if value is not None else None for value in node.inputs[:3]]
        after = [usage.node for usage in node.outputs[0].uses()]
        sources = [cast.inputs[0] for cast in casts if cast is not None and cast.op_type == "Cast"]
        if len(sources) != 3 or len(after) != 1 or after[0].op_type != "Cast":
            continue
        types = {source.dtype for source in sources if source is not None} | {after[0].outputs[0].dtype}
        if len(types) != 1 or next(iter(types)) not in _HALF:
            continue
        for index, source in enumerate(sources):
            node.replace_input_with(index, source)
        replace(model.graph, after[0], [], node.outputs[0])
        for cast in {id(cast): cast for cast in casts if cast is not None}.values():
            if not cast.outputs[0].uses():
                model.graph.remove(cast, safe=True)
        changed = True
    return changed


def decomposable_attention(model: ir.Model) -> int:
    """Mark ``Attention`` nodes with ``TRT_decomposable``, so that TensorRT may compute each by several kernels.

    The attribute is not part of ONNX: ONNX's checker and onnxruntime refuse graphs that have it.
    Requires: nothing.
    Result: every standard ``Attention`` of the graph has the attribute.

    Returns:
        How many nodes there are.
    """
    nodes = _attentions(model)
    for node in nodes:
        node.attributes[DECOMPOSABLE] = ir.AttrInt64(DECOMPOSABLE, 1)
    return len(nodes)


def explicit_attention(model: ir.Model) -> bool:
    """Replace the standard ``Attention`` by ``MatMul``, ``Where`` and ``Softmax``.

    TensorRT refuses an ``Attention`` without a fused kernel (float32 has none), unless the program that parses
    the graph marks it as decomposable. This form needs no mark, but memory for the scores, ``(B, H, N, T)`` in the
    attention's type, for the layer that is being computed.
    Requires: such nodes have four inputs of four axes, one output, a known type, number and width of heads, no
    attribute other than 0 (else ``ValueError``), and a bool mask of one head. A row that may see no token gives NaN.
    Result: no such node is left.

    Returns:
        Whether there was such a node.
    """
    nodes = _attentions(model)
    for node in nodes:
        tensors = list(node.inputs)
        set_otherwise = [name for name, attribute in node.attributes.items() if attribute.value != 0]
        if len(tensors) != 4 or None in tensors or len(node.outputs) != 1 or set_otherwise:
            raise ValueError(f"{node.name}: an Attention of another form")
        _make_explicit(model.graph, node)
    return bool(nodes)


def _make_explicit(graph: ir.Graph, node: ir.Node) -> None:
    """Replace one node; query heads that share a key get an axis of their own in front of the tokens."""
    query, key, value, mask = node.inputs
    assert query is not None and key is not None and value is not None and mask is not None
    dtype = query.dtype
    if dtype is None:
        raise ValueError(f"{node.name}: Attention of an unknown type")
    heads, shared, width = _size(node, query, 1), _size(node, key, 1), _size(node, query, 3)
    name, chain = f"{node.name}_explicit", NodeChain(f"{node.name}_explicit")
    grouped = shared not in (1, heads)
    if grouped:  # (B, H, N, D) to (B, H/G, G, N, D); keys and values get an axis of size 1 for G
        split = integers(graph, f"{name}.split", 0, shared, heads // shared, -1, width)
        query = chain.add("Reshape", [query, split], "q", dtype=dtype)
        two = integers(graph, "attention.group_axis", 2)
        key, value = (chain.add("Unsqueeze", [x, two], n, dtype=dtype) for x, n in ((key, "k"), (value, "y")))
        mask = chain.add("Unsqueeze", [mask, integers(graph, "attention.head_axis", 1)], "seen", dtype=_BOOL)
    turned = chain.add("Transpose", [key], "turned", {"perm": [0, 1, 2, 4, 3] if grouped else [0, 1, 3, 2]}, dtype)
    scale = constant(graph, f"{name}.scale", np.array(1 / math.sqrt(width), dtype=dtype.numpy()))
    hidden = constant(graph, f"{name}.hidden", np.array(-math.inf, dtype=dtype.numpy()))
    scaled = chain.add("Mul", [query, scale], "scaled", dtype=dtype)
    scores = chain.add("MatMul", [scaled, turned], "scores", dtype=dtype)
    masked = chain.add("Where", [mask, scores, hidden], "masked", dtype=dtype)
    weights = chain.add("Softmax", [masked], "weights", {"axis": -1}, dtype)
    result = chain.add("MatMul", [weights, value], "heads", dtype=dtype)
    if grouped:
        chain.add("Reshape", [result, integers(graph, f"{name}.join", 0, heads, -1, width)], "joined", dtype=dtype)
    replace(graph, node, chain.nodes)


def _size(node: ir.Node, tensor: ir.Value, axis: int) -> int:
    size = None if tensor.shape is None or len(tensor.shape) != 4 else tensor.shape[axis]
    if not isinstance(size, int):
        raise ValueError(f"{node.name}: Attention with heads of unknown number or width")
    return size


def _attentions(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "Attention" and node.domain in ("", "ai.onnx")]
