"""Read quantized weights instead of float ones, through onnxruntime's operators or ``DequantizeLinear``."""

from __future__ import annotations

import onnx_ir as ir

from lucid_deploy.artifact.quantization import OFFSETS, PACKED, ROWS, SCALES, Quantization
from lucid_deploy.export.passes.block_offsets import BlockOffsets
from lucid_deploy.export.passes.float_weights import RoundedInputs, dequantized_floats
from lucid_deploy.export.passes.weight_initializers import WeightInitializers

CONTRIB = "com.microsoft"
_LEVEL = {"float": 0, "int8": 4}  # accuracy_level of MatMulNBits: 4 lets inputs be rounded to int8, block by block


def quantize_weights(model: ir.Model, quantization: Quantization, names: dict[str, str] | None = None) -> None:
    """Replace weights by their quantized parts.

    Requires: a quantized weight is an initializer, read by ``MatMul`` as ``[in, out]``, by ``Gemm(transB=1)`` as
    ``[out, in]`` or by ``Gather(axis=0)``; a weight that ``Gather`` reads is in the format ``matmulnbits``.
    Result: such a weight is gone. In its place are initializers without data, ``NAME.packed`` and ``NAME.scales``
    (and ``NAME.zero_points`` or ``NAME.offsets`` if there are; ``NAME.packed_rows``, the same bytes in another shape,
    for ``Gather``; of floating-point numbers ``NAME.whole_scale`` and ``NAME.input_scale`` if there are), read by
    ``MatMulNBits`` and ``GatherBlockQuantized`` or by a ``DequantizeLinear`` before the product. Other weights are not
    touched. Inputs of products are rounded where the record says so, see
    :mod:`lucid_deploy.export.passes.float_weights`; offsets are read by
    :mod:`lucid_deploy.export.passes.block_offsets`.

    Args:
        model: The model, changed in place.
        quantization: What is quantized, and how.
        names: The graph's name of a weight where it is not the checkpoint's, by the latter: a tied embedding's.
    """
    inputs, offsets = RoundedInputs(model.graph, quantization), BlockOffsets(model.graph)
    for stored in quantization.tensors:
        graph_name = (names or {}).get(stored, stored)
        if graph_name not in model.graph.initializers:
            raise ValueError(f"the graph has no weight {graph_name}")
        weight = model.graph.initializers[graph_name]
        assert weight.dtype is not None
        parts = WeightInitializers(model.graph, stored, quantization, weight.dtype)
        for use in list(weight.uses()):
            node = use.node
            kind = (node.op_type, use.idx)
            if kind == ("Gather", 0) and quantization.format == "matmulnbits":
                _gather(model.graph, node, parts)
            elif kind in (("MatMul", 1), ("Gemm", 1)) and quantization.format == "matmulnbits":
                offsets.add(_product(model.graph, node, parts), parts)
            elif kind == ("MatMul", 1):
                _dequantize(model.graph, node, parts)
                inputs.round(node, parts)
                offsets.add(node, parts)
            else:
                raise ValueError(f"{graph_name} is read by input {use.idx} of {node.op_type}, which is not quantized")
        del model.graph.initializers[graph_name]
    if quantization.format == "matmulnbits":
        model.opset_imports[CONTRIB] = 1


def _product(graph: ir.Graph, node: ir.Node, parts: WeightInitializers) -> ir.Node:
    """``MatMul(x, W)`` or ``Gemm(x, W, transB=1)``."""
    assert len([value for value in node.inputs if value is not None]) == 2
    (rows, width), quantization = parts.tensor.shape, parts.quantization
    attributes = {
        "K": width,
        "N": rows,
        "bits": quantization.bits_of(parts.name),
        "block_size": parts.tensor.block_size,
        "accuracy_level": _LEVEL[quantization.activations],
    }
    read = [part for part in quantization.parts(parts.name) if part != OFFSETS]
    inputs = [node.inputs[0], *(parts.get(part) for part in read)]
    product = ir.node("MatMulNBits", inputs, attributes=attributes, domain=CONTRIB)
    _replace(graph, node, product)
    return product


def _gather(graph: ir.Graph, node: ir.Node, parts: WeightInitializers) -> None:
    """``Gather(W, ids)``; a last block that is longer than the rest of the row gives columns that are cut off."""
    (_, width), size = parts.tensor.shape, parts.tensor.block_size
    attributes = {
        "bits": parts.quantization.bits_of(parts.name),
        "block_size": size,
        "gather_axis": 0,
        "quantize_axis": 1,
    }
    inputs = [parts.get(ROWS), node.inputs[1], parts.get(SCALES)]
    gather = ir.node("GatherBlockQuantized", inputs, attributes=attributes, domain=CONTRIB)
    if width % size == 0:
        _replace(graph, node, gather)
        return
    bounds = []
    for suffix, number in (("start", 0), ("end", width), ("axis", -1)):
        name = f"{parts.name}.slice_{suffix}"
        tensor = ir.tensor([number], dtype=ir.DataType.INT64, name=name)
        value = ir.Value(name=name, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64), const_value=tensor)
        graph.register_initializer(value)
        bounds.append(value)
    gather.outputs[0].name, gather.outputs[0].dtype = f"{node.outputs[0].name}_whole_blocks", node.outputs[0].dtype
    graph.insert_before(node, gather)
    _replace(graph, node, ir.node("Slice", [gather.outputs[0], *bounds]))


def _dequantize(graph: ir.Graph, node: ir.Node, parts: WeightInitializers) -> None:
    """``MatMul(x, W)``: the same product, of what ``DequantizeLinear`` makes of the parts."""
    weight = node.inputs[1]
    assert weight is not None
    if parts.quantization.is_float:
        node.replace_input_with(1, dequantized_floats(graph, node, weight, parts))
        return
    attributes = {"axis": 0, "block_size": parts.tensor.block_size}
    made = ir.node("DequantizeLinear", [parts.get(PACKED), parts.get(SCALES)], attributes=attributes)
    made.name = f"{parts.name}.dequantize"
    value = made.outputs[0]
    value.name, value.shape, value.type = f"{parts.name}.dequantized", weight.shape, weight.type
    graph.insert_before(node, made)
    node.replace_input_with(1, value)


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    """Put a node in another's place; its output takes the other's name, shape and type."""
    before, after = old.outputs[0], new.outputs[0]
    new.name, name = old.name, before.name
    after.shape, after.type = before.shape, before.type
    graph.insert_before(old, new)
    ir.convenience.replace_all_uses_with(before, after, replace_graph_outputs=True)
    graph.remove(old, safe=True)
    after.name = name
