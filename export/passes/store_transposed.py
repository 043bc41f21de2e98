"""Bring weights into the layout their product reads, so that no runtime transposes (and copies) them at load time.

PyTorch stores a linear layer as ``[out, in]`` and the tracer writes ``MatMul(x, Transpose(W))``.
"""

from __future__ import annotations

import onnx_ir as ir


def store_transposed(model: ir.Model, weights: set[str]) -> set[str]:
    """Remove ``Transpose`` nodes from weights.

    Requires: weights are graph inputs or initializers without data; ``Transpose`` of a weight, or of a ``Cast`` of it,
    is a plain 2-D one.
    Result: a weight that was only ever transposed has the shape ``[in, out]``. One that is also read as it is (a tied
    embedding) keeps its layout, and its product becomes ``Gemm(transB=1)``. A ``Cast`` stays.

    Args:
        model: The model.
        weights: Names of the weights.

    Returns:
        Names of the weights that must be stored transposed.
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
                form.shape = ir.Shape(list(form.shape)[::-1])
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
    """Replace ``MatMul(x, Wᵀ)``, x of three axes, by a Gemm on its rows."""
    assert matmul.op_type == "MatMul" and weight.shape is not None
    x, out = matmul.inputs[0], matmul.outputs[0]
    assert x is not None and out.name is not None
    columns, width = weight.shape[0], weight.shape[1]
    name = out.name

    def constant(values: list[int], suffix: str) -> ir.Value:
        value = ir.Value(
            name=f"{name}_{suffix}",
            shape=ir.Shape([len(values)]),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(values, dtype=ir.DataType.INT64, name=f"{name}_{suffix}"),
        )
        graph.register_initializer(value)
        return value

    rows = ir.node("Reshape", [x, constant([-1, int(width)], "rows_shape")], name=f"{name}_rows")
    product = ir.node("Gemm", [rows.outputs[0], weight], attributes={"transB": 1}, name=f"{name}_gemm")
    lead = ir.node("Shape", [x], attributes={"end": 2}, name=f"{name}_lead")
    shape = ir.node("Concat", [lead.outputs[0], constant([int(columns)], "columns")], attributes={"axis": 0})
    back = ir.node("Reshape", [product.outputs[0], shape.outputs[0]], name=f"{name}_back")
    for node in (rows, product, lead, shape, back):
        for value in node.outputs:
            value.dtype = ir.DataType.INT64 if node in (lead, shape) else out.dtype
    back.outputs[0].shape = out.shape
    graph.insert_before(matmul, [rows, product, lead, shape, back])
    ir.convenience.replace_all_uses_with(out, back.outputs[0], replace_graph_outputs=True)
    graph.remove(matmul, safe=True)
    back.outputs[0].name = name
