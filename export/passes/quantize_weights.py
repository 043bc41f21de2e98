"""Make graphs read quantized weights, by onnxruntime's operators, ours for experts, or ``DequantizeLinear``."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lucid_deploy.artifact.quantization import OFFSETS, PACKED, ROWS, SCALES, Quantization, short_name, weight_and_rows
from lucid_deploy.errors import LucidError
from lucid_deploy.export.passes.editing import NodeChain, constant, integers, replace
from lucid_deploy.export.passes.quantize_floats import InputRounding, dequantize_float_weight
from lucid_deploy.plugins.table import DOMAIN, EXPERT_MATMUL, QUANTIZED_EXPERT_MATMUL

CONTRIB = "com.microsoft"
_ACCURACY_LEVEL = {"float": 0, "int8": 4}  # of MatMulNBits: 4 allows rounding the inputs to int8, block by block


def quantize_weights(model: ir.Model, quantization: Quantization, names: dict[str, str] | None = None) -> None:
    """Replace weights by their quantized parts, in place.

    Requires: each quantized weight is an initializer (else ``ValueError``), read (else ``LucidError``) by ``MatMul`` as
    ``[in, out]`` or, only in the format ``matmulnbits``, by ``Gemm(transB=1)`` as ``[out, in]``, by ``Gather(axis=0)``
    or by ``ExpertMatMul``.
    Result: the weight is replaced by initializers without data, one per part of the record (``NAME.packed``,
    ``NAME.scales``, …; for ``Gather`` also ``NAME.packed_rows``, the same bytes in another shape). ``MatMulNBits``,
    ``GatherBlockQuantized`` and, for experts, ``QuantizedExpertMatMul`` read them, or a ``DequantizeLinear`` before the
    ``MatMul``; separate nodes add the offsets. Inputs are rounded as the record specifies.

    Args:
        names: Maps names in the record to names in the graph, for weights whose names differ (a tied embedding).
    """
    _split_rows(model, quantization, names or {})
    rounding, offsets = InputRounding(model.graph, quantization), BlockOffsets(model.graph)
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
            if kind == (EXPERT_MATMUL.name, EXPERT_MATMUL.place("W")):
                offsets.add(_replace_expert_product(model.graph, node, parts), parts)
            elif kind == ("Gather", 0) and quantization.format == "matmulnbits":
                _replace_gather(model.graph, node, parts)
            elif kind in (("MatMul", 1), ("Gemm", 1)) and quantization.format == "matmulnbits":
                offsets.add(_replace_product(model.graph, node, parts), parts)
            elif kind == ("MatMul", 1):
                _dequantize(model.graph, node, parts)
                rounding.apply(node, parts)
                offsets.add(node, parts)
            else:
                raise LucidError(  # such as the Gemm of a shared expert in the format qdq
                    f"{short_name(graph_name)} is read by input {use.idx} of {node.op_type}, which is not quantized "
                    f"in the format {quantization.format}. Keep it with --keep-float {short_name(graph_name)!r}."
                )
        del model.graph.initializers[graph_name]
    if quantization.format == "matmulnbits":
        model.opset_imports[CONTRIB] = 1


def _split_rows(model: ir.Model, quantization: Quantization, names: dict[str, str]) -> None:
    """Replace each weight whose rows the record splits into two pieces by these pieces, in place.

    Requires: such a weight ``(rows, columns)`` is an initializer, read by ``Gather(axis=0)`` or ``Gemm(transB=1)``.
    Result: a ``Gather`` of the weight becomes one per piece, with a ``Where`` that selects between their rows; a
    ``Gemm`` becomes one per piece, whose columns are concatenated.

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


class WeightInitializers:
    """The initializers of a quantized weight's parts, each created without data when it is first requested.

    Attributes:
        name: The weight's name in the record.
        quantization: The manifest's record of all quantized weights.
        tensor: This weight's entry in the record.
        dtype: The dtype of the original weight in the graph.
    """

    def __init__(self, graph: ir.Graph, name: str, quantization: Quantization, dtype: ir.DataType) -> None:
        self.name, self.quantization, self.tensor = name, quantization, quantization.tensors[name]
        self._graph, self.dtype = graph, dtype
        self._cast: dict[str, ir.Value] = {}

    def in_weights_type(self, part: str) -> ir.Value:
        """Return a part in the original weight's dtype; insert a ``Cast`` if it is stored in another dtype."""
        stored, chain = self.get(part), NodeChain(self.name + part)
        if part not in self._cast:
            self._cast[part] = chain.cast(stored, self.dtype, "cast")
            self._cast[part].shape = stored.shape
            self._graph.insert_before(self._graph[0], chain.nodes)
        return self._cast[part]

    def get(self, part: str) -> ir.Value:
        """Return the initializer of a part."""
        name = self.name + part
        if name not in self._graph.initializers:
            kind = self.quantization.part_dtype(self.name, part, self.dtype.name.lower()).upper()
            shape = ir.Shape(self.quantization.part_shape(self.name, part))
            dtype = ir.DataType.FLOAT if kind == "FLOAT32" else ir.DataType[kind]
            self._graph.initializers[name] = ir.Value(name=name, shape=shape, type=ir.TensorType(dtype))
        return self._graph.initializers[name]


class BlockOffsets:
    """Add the contribution of the blocks' offsets to the matrix products of one graph.

    If a weight W is q · s + c, with an offset c for each block of ``block_size`` elements, then x Wᵀ is x (q · s)ᵀ plus
    Σ_b (Σ_{i in b} x_i) c_b, the sums of the input's blocks times the offsets. All weights multiplied by the same input
    with the same block size share these sums.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._sums: dict[tuple[ir.Value, int], ir.Value] = {}

    def add(self, product: ir.Node, parts: WeightInitializers) -> None:
        """If the weight has offsets, add their contribution to the output ``x Wᵀ`` of a node."""
        if not parts.tensor.offsets:
            return
        x, plain = product.inputs[0], product.outputs[0]
        assert x is not None
        name, plain.name = plain.name, f"{parts.name}.without_offsets"
        chain = NodeChain(parts.name)
        sums, by_offsets = self._block_sums(x, parts), parts.in_weights_type(OFFSETS)
        if parts.tensor.experts:
            inputs = [sums, product.inputs[1], by_offsets]
            share = chain.add(EXPERT_MATMUL.name, inputs, "of_offsets", None, plain.dtype, DOMAIN)
        else:
            share = chain.add("MatMul", [sums, by_offsets], "of_offsets", dtype=plain.dtype)
        total = chain.add("Add", [plain, share], "with_offsets", dtype=plain.dtype)
        total.shape = plain.shape
        self._graph.insert_after(product, chain.nodes)
        ir.convenience.replace_all_uses_with(plain, total, replace_graph_outputs=True)
        chain.nodes[-1].replace_input_with(0, plain)
        total.name = name

    def _block_sums(self, x: ir.Value, parts: WeightInitializers) -> ir.Value:
        """Return the sums of an input's blocks, ``(…, blocks)``."""
        size = parts.tensor.block_size
        if (x, size) not in self._sums:
            assert x.shape is not None
            axes = len(x.shape)
            shape = integers(self._graph, f"blocks_of_{size}_on_axis_{axes}", *[0] * (axes - 1), -1, size)  # 0: as in x
            chain = NodeChain(parts.name)
            blocks = chain.add("Reshape", [x, shape], "blocks", dtype=x.dtype)  # (…, blocks, size)
            last_axis = integers(self._graph, "blocks_last_axis", -1)
            sums = chain.add("ReduceSum", [blocks, last_axis], "sums", {"keepdims": 0}, x.dtype)
            chain.insert_behind(self._graph, x)
            self._sums[x, size] = sums
        return self._sums[x, size]


def _replace_product(graph: ir.Graph, node: ir.Node, parts: WeightInitializers) -> ir.Node:
    """Replace ``MatMul(x, W)`` or ``Gemm(x, W, transB=1)`` by ``MatMulNBits``."""
    assert len([value for value in node.inputs if value is not None]) == 2
    (rows, width), quantization = parts.tensor.shape, parts.quantization
    attributes = {
        "K": width,
        "N": rows,
        "bits": quantization.bits_of(parts.name),
        "block_size": parts.tensor.block_size,
        "accuracy_level": _ACCURACY_LEVEL[quantization.activations],
    }
    read = [part for part in quantization.parts(parts.name) if part not in (PACKED, SCALES, OFFSETS)]
    scales = parts.in_weights_type(SCALES)
    inputs = [node.inputs[0], parts.get(PACKED), scales, *(parts.get(part) for part in read)]
    product = ir.node("MatMulNBits", inputs, attributes=attributes, domain=CONTRIB)
    replace(graph, node, [product])
    return product


def _replace_expert_product(graph: ir.Graph, node: ir.Node, parts: WeightInitializers) -> ir.Node:
    inputs = [*node.inputs[:2], parts.get(PACKED), parts.in_weights_type(SCALES)]
    product = ir.node(QUANTIZED_EXPERT_MATMUL.name, inputs, domain=DOMAIN)
    replace(graph, node, [product])
    return product


def _replace_gather(graph: ir.Graph, node: ir.Node, parts: WeightInitializers) -> None:
    """Replace ``Gather(W, ids)`` by ``GatherBlockQuantized``; slice off the padding of an incomplete last block."""
    (_, width), size = parts.tensor.shape, parts.tensor.block_size
    attributes = {
        "bits": parts.quantization.bits_of(parts.name),
        "block_size": size,
        "gather_axis": 0,
        "quantize_axis": 1,
    }
    scales, chain = parts.get(SCALES), NodeChain(str(node.outputs[0].name))
    inputs = [parts.get(ROWS), node.inputs[1], scales]
    found = chain.add("GatherBlockQuantized", inputs, "blocks", attributes, scales.dtype, CONTRIB)
    if width % size:
        bounds = [
            integers(graph, f"{parts.name}.slice_{suffix}", number)
            for suffix, number in (("start", 0), ("end", width), ("axis", -1))
        ]
        found = chain.add("Slice", [found, *bounds], "row", dtype=scales.dtype)
    chain.cast(found, parts.dtype, "cast")
    replace(graph, node, chain.nodes)


def _dequantize(graph: ir.Graph, node: ir.Node, parts: WeightInitializers) -> None:
    """Make ``MatMul(x, W)`` read the weight from a ``DequantizeLinear`` node."""
    weight = node.inputs[1]
    assert weight is not None
    if parts.quantization.is_float:
        node.replace_input_with(1, dequantize_float_weight(graph, node, weight, parts))
        return
    chain, attributes = NodeChain(parts.name), {"axis": 0, "block_size": parts.tensor.block_size}
    inputs = [parts.get(PACKED), parts.get(SCALES)]
    dequantized = chain.add("DequantizeLinear", inputs, "dequantized", attributes, weight.dtype)
    dequantized.shape = weight.shape
    graph.insert_before(node, chain.nodes)
    node.replace_input_with(1, dequantized)
