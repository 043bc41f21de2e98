"""Divide a weight into pieces of its rows that are quantized differently."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lucid_deploy.artifact.quantization import Quantization, weight_and_rows
from lucid_deploy.export.passes.editing import NodeChain, constant, integers, replace


def split_rows(model: ir.Model, quantization: Quantization, names: dict[str, str]) -> None:
    """Replace each weight whose rows are recorded as two pieces by these pieces, in place.

    Requires: such a weight ``(rows, columns)`` is an initializer, read by ``Gather(axis=0)`` or ``Gemm(transB=1)``.
    Result: the weight is gone. A ``Gather`` becomes one for each piece, and a ``Where`` chooses between their rows;
    a ``Gemm`` becomes one for each piece, and their columns are joined.

    Args:
        names: As for ``quantize_weights``.
    """
    graph = model.graph
    for name in dict.fromkeys(weight_and_rows(piece)[0] for piece in quantization.tensors):
        pieces = quantization.pieces(name)
        if len(pieces) == 1:
            continue
        weight = graph.initializers.pop(names.get(name, name))
        parts = []
        for piece in pieces:
            shape = ir.Shape(quantization.tensors[piece].shape)
            graph.initializers[piece] = ir.Value(name=piece, shape=shape, type=weight.type)
            parts.append(graph.initializers[piece])
        for use in list(weight.uses()):
            (_split_gather if use.node.op_type == "Gather" else _split_product)(graph, use.node, parts)


def _split_gather(graph: ir.Graph, node: ir.Node, pieces: list[ir.Value]) -> None:
    ids, out = node.inputs[1], node.outputs[0]
    rows = pieces[0].shape[0] if pieces[0].shape else None
    assert ids is not None and ids.dtype is not None and isinstance(rows, int)
    chain, kind = NodeChain(f"{pieces[0].name}.of"), ids.dtype
    border, last, zero = (constant(graph, f"{chain.prefix}.{n}", np.array(n, np.int64)) for n in (rows, rows - 1, 0))
    beyond = chain.add("Sub", [ids, border], "beyond", dtype=kind)
    places = (
        chain.add("Min", [ids, last], "first_ids", dtype=kind),
        chain.add("Max", [beyond, zero], "second_ids", dtype=kind),
    )
    found = [
        chain.add("Gather", [piece, at], f"rows_{i}", {"axis": 0}, out.dtype)
        for i, (piece, at) in enumerate(zip(pieces, places, strict=True))
    ]
    is_first = chain.add("Less", [ids, border], "is_first", dtype=ir.DataType.BOOL)
    mask = chain.add(
        "Unsqueeze", [is_first, integers(graph, f"{chain.prefix}.axis", -1)], "mask", dtype=ir.DataType.BOOL
    )
    replace(graph, node, [*chain.nodes, ir.node("Where", [mask, *found])])


def _split_product(graph: ir.Graph, node: ir.Node, pieces: list[ir.Value]) -> None:
    assert node.op_type == "Gemm"
    chain, dtype = NodeChain(f"{pieces[0].name}.product"), node.outputs[0].dtype
    columns = [
        chain.add("Gemm", [node.inputs[0], piece], f"columns_{i}", {"transB": 1}, dtype)
        for i, piece in enumerate(pieces)
    ]
    replace(graph, node, [*chain.nodes, ir.node("Concat", columns, attributes={"axis": -1})])
