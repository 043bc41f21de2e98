"""Rewrite grouped-query ``Attention`` to one key/value head per batch row, which all runtimes compute alike."""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.export.passes.editing import NodeChain, integers


def pair_heads(model: ir.Model) -> None:
    """Move the key/value heads into the batch axis where several query heads share one (GQA), in place.

    Requires: ``Attention`` nodes of the main graph have inputs with four axes, known numbers of heads, a mask with one
    head, and one output; ``ValueError`` if shapes or numbers of heads are unknown.
    Result: with H key/value heads and G query heads per key/value head, such a node reads queries ``(B·H, G, N, D)``,
    keys and values ``(B·H, 1, T, D)`` and a mask ``(B·H, 1, N, T)``; its readers get the same values. Nodes without
    shared heads do not change.
    """
    for node in list(model.graph):
        if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
            continue
        query, key = node.inputs[0], node.inputs[1]
        if query is None or key is None or query.shape is None or key.shape is None or len(node.outputs) != 1:
            raise ValueError(f"{node.name}: Attention without shapes")
        heads, shared = query.shape[1], key.shape[1]
        if not isinstance(heads, int) or not isinstance(shared, int):
            raise ValueError(f"{node.name}: Attention with unknown numbers of heads")
        if heads != shared:
            _pair(model.graph, node, heads // shared, shared)


def _pair(graph: ir.Graph, node: ir.Node, group: int, heads: int) -> None:
    output = node.outputs[0]
    query, key, value, mask = node.inputs
    assert query is not None and key is not None and value is not None and mask is not None
    chain, name = NodeChain(f"{node.name}_pairs"), f"{node.name}_pairs"
    int64 = ir.DataType.INT64

    def bring_into_batch(tensor: ir.Value, heads_left: int, place: int) -> None:
        """Reshape ``(B, H · heads_left, N, D)`` to ``(B · H, heads_left, N, D)``."""
        lead = integers(graph, f"{name}.lead_{heads_left}", -1, heads_left)
        tail = chain.add("Shape", [tensor], f"tail_{place}", {"start": 2, "end": 4}, int64)
        shape = chain.add("Concat", [lead, tail], f"shape_{place}", {"axis": 0}, int64)
        node.replace_input_with(place, chain.add("Reshape", [tensor, shape], f"input_{place}", dtype=tensor.dtype))

    shape = chain.add("Shape", [query], "query_shape", dtype=int64)
    bring_into_batch(query, group, 0)
    bring_into_batch(key, 1, 1)
    bring_into_batch(value, 1, 2)
    repeats = integers(graph, f"{name}.repeats", 1, heads, 1, 1)
    bring_into_batch(chain.add("Tile", [mask, repeats], "mask", dtype=mask.dtype), 1, 3)
    graph.insert_before(node, chain.nodes)
    back = ir.node("Reshape", [output, shape], name=f"{node.name}_back")
    made, output_name = back.outputs[0], str(output.name)
    made.type, made.shape = output.type, output.shape
    ir.convenience.replace_all_uses_with(output, made, replace_graph_outputs=True)
    back.replace_input_with(0, output)
    output.name, output.shape, made.name = f"{output_name}_of_pairs", None, output_name
    graph.insert_after(node, back)
