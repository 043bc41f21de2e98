"""Write prefill's attention as one standard ``Attention`` with a mask, instead of a loop over blocks."""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DOMAIN


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
            made = _visible(query, mask, f"visible_{len(visible)}")
            model.graph.insert_before(node, made)
            visible[mask] = made[-1].outputs[0]
        old = node.outputs[0]
        attention = ir.node("Attention", [query, key, value, visible[mask]], name=f"{old.name}_attention")
        new = attention.outputs[0]
        new.shape, new.type = old.shape, old.type
        model.graph.insert_before(node, attention)
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
        new.name = old.name
    for signature in [key for key in model.functions if key[:2] == (DOMAIN, CAUSAL_ATTENTION.name)]:
        del model.functions[signature]
    return bool(nodes)


def _visible(query: ir.Value, mask: ir.Value, prefix: str) -> list[ir.Node]:
    """Return nodes whose last output says which token ``(B, 1, N, T)`` sees which.

    A new token sees the tokens before it that are not padding, and itself in any case.

    Args:
        query: ``(B, H, N, D)``.
        mask: Bool ``(B, T)``, T ≥ N.
        prefix: For the names of the new values.
    """
    nodes: list[ir.Node] = []

    def add(kind: str, inputs: list[ir.Value], name: str, **attributes: object) -> ir.Value:
        node = ir.node(kind, inputs, attributes=attributes, name=f"{prefix}_{name}")  # type: ignore[arg-type]
        node.outputs[0].name = node.name
        nodes.append(node)
        return node.outputs[0]

    def constant(value: int | list[int], name: str) -> ir.Value:
        return add("Constant", [], name, value=ir.tensor(value, dtype=ir.DataType.INT64, name=f"{prefix}_{name}_value"))

    zero, one, axis_0, axes = constant(0, "zero"), constant(1, "one"), constant([0], "axis"), constant([1, 2], "axes")
    new = add("Squeeze", [add("Shape", [query], "new_shape", start=2, end=3), axis_0], "new")
    total = add("Squeeze", [add("Shape", [mask], "total_shape", start=1, end=2), axis_0], "total")
    past = add("Sub", [total, new], "past")
    column = add("Range", [zero, total, one], "column")  # (T,)
    row = add("Unsqueeze", [add("Range", [past, total, one], "row_index"), constant([1], "row_axis")], "row")  # (N, 1)
    token = add("Unsqueeze", [mask, axes], "token")  # (B, 1, 1, T)
    earlier = add("And", [add("Greater", [row, column], "later"), token], "earlier")
    add("Or", [earlier, add("Equal", [row, column], "itself")], "mask")
    return nodes
