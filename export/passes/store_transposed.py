"""Store weights in the layout that ``MatMul`` reads, so that no runtime transposes (and copies) them at load time.

PyTorch stores the weight of a linear layer as ``[out, in]``, and the tracer emits ``MatMul(x, Transpose(W))``.
"""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.export.passes.editing import NodeChain, integers


def store_transposed(model: ir.Model, weights: set[str]) -> set[str]:
    """Remove ``Transpose`` nodes of weights, in place; return the names of the weights to be stored transposed.

    Requires: weights are graph inputs or initializers without data; each ``Transpose`` of a weight, or of a ``Cast`` of
    it, swaps the last two axes.
    Result: a weight that was only read transposed has the shape ``[in, out]``, or ``[experts, in, out]``. A weight that
    is also read untransposed (a tied embedding) keeps its layout, and its ``MatMul`` becomes ``Gemm(transB=1)``. A
    ``Cast`` stays.
    """
    transposed = set()
    candidates = [value for value in (*model.graph.inputs, *model.graph.initializers.values()) if value.name in weights]
    for weight in candidates:
        forms = [weight, *(use.node.outputs[0] for use in weight.uses() if use.node.op_type == "Cast")]
        users = [use.node for form in forms for use in form.uses() if use.node.outputs[0] not in forms]
        transposes = [node for node in users if node.op_type == "Transpose"]
        if not transposes:
            continue
        if len(transposes) == len(users):
            for form in forms:
                assert form.shape is not None
                *lead, rows, columns = form.shape
                form.shape = ir.Shape([*lead, columns, rows])
            for node in transposes:
                assert node.inputs[0] is not None
                ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            transposed.add(str(weight.name))
        else:
            for node in transposes:
                assert node.inputs[0] is not None
                for use in list(node.outputs[0].uses()):
                    _matmul_to_gemm(model.graph, use.node, node.inputs[0])
        model.graph.remove(transposes, safe=True)
    return transposed


def _matmul_to_gemm(graph: ir.Graph, matmul: ir.Node, weight: ir.Value) -> None:
    """Replace ``MatMul(x, Wᵀ)``, where x has three axes, by a ``Gemm`` on the rows of x."""
    assert matmul.op_type == "MatMul" and weight.shape is not None
    x, out = matmul.inputs[0], matmul.outputs[0]
    assert x is not None and out.name is not None
    (columns, width), name = weight.shape, out.name
    assert isinstance(columns, int) and isinstance(width, int)
    chain, int64 = NodeChain(name), ir.DataType.INT64
    rows = chain.add("Reshape", [x, integers(graph, f"{name}.rows_shape", -1, width)], "rows", dtype=out.dtype)
    product = chain.add("Gemm", [rows, weight], "gemm", {"transB": 1}, out.dtype)
    lead = chain.add("Shape", [x], "lead", {"end": 2}, int64)
    shape = chain.add("Concat", [lead, integers(graph, f"{name}.columns", columns)], "shape", {"axis": 0}, int64)
    back = chain.add("Reshape", [product, shape], "back", dtype=out.dtype)
    back.shape = out.shape
    graph.insert_before(matmul, chain.nodes)
    ir.convenience.replace_all_uses_with(out, back, replace_graph_outputs=True)
    graph.remove(matmul, safe=True)
    back.name = name
