"""Graphs read quantized weights, and compute what they would with the dequantized weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from lucid_deploy.artifact.quantization import OFFSETS, PACKED, ROWS, SCALES, Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.errors import LucidError
from lucid_deploy.export.passes.quantize_weights import quantize_weights
from tests.export.passes.graphs import FLOAT, INT64, model, operators, run, weight_of

OUT, WIDTH = 6, 64
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, WIDTH)).astype(np.float32)
GEMM = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)


def record(form: str, bits: int = 8, width: int = WIDTH, block: int = 32) -> Quantization:
    tensors = {"w": QuantizedTensor((OUT, width), block)}
    return Quantization(f"int{bits}", bits, form, "float", tensors, (), "a tool")


def parts(quantization: Quantization) -> dict[str, np.ndarray]:
    """Return random contents of the stored parts, in the shapes of the graph."""
    packed = RNG.integers(0, 256, quantization.part_size("w", PACKED, "float32"), dtype=np.uint8)
    scales = RNG.uniform(0.5, 2, quantization.part_shape("w", SCALES)).astype(np.float32)
    kind = np.int8 if quantization.packed_dtype("w") == "int8" else np.uint8
    return {
        f"w{PACKED}": packed.view(kind).reshape(quantization.part_shape("w", PACKED)),
        f"w{SCALES}": scales,
    }


def product(node: str) -> ir.Model:
    shape, x = ([OUT, WIDTH], [6, WIDTH]) if node == "Gemm" else ([WIDTH, OUT], ["batch", "sequence", WIDTH])
    made = GEMM if node == "Gemm" else helper.make_node("MatMul", ["x", "w"], ["y"])
    found = model([made], {"x": (FLOAT, x), "w": (FLOAT, shape)}, {"y": (FLOAT, None)})
    weight_of(found.graph, "w")
    return found


@pytest.mark.parametrize(
    ("form", "node", "after"),
    [
        ("matmulnbits", "MatMul", ["MatMulNBits"]),
        ("matmulnbits", "Gemm", ["MatMulNBits"]),
        ("qdq", "MatMul", ["DequantizeLinear", "MatMul"]),
    ],
)
def test_a_product_uses_the_dequantized_weight(form: str, node: str, after: list[str]) -> None:
    quantization, found = record(form), product(node)
    quantize_weights(found, quantization)
    assert operators(found) == after
    assert set(found.graph.initializers) == {f"w{PACKED}", f"w{SCALES}"}
    stored = parts(quantization)
    weight = dequantize(quantization, "w", stored[f"w{PACKED}"].view(np.uint8).ravel(), stored[f"w{SCALES}"].ravel())
    x = X.reshape(6, WIDTH) if node == "Gemm" else X
    np.testing.assert_allclose(run(found, {"x": x}, stored)[0], x @ weight.T, rtol=1e-4, atol=1e-3)
    assert [value.name for value in found.graph.outputs] == ["y"]


@pytest.mark.parametrize("width", [64, 48])
def test_an_embedding_and_a_tied_head_share_their_bytes(width: int) -> None:
    """With a width of 48 the last block of a row is incomplete; what fills it up is cut off."""
    quantization = record("matmulnbits", bits=4, width=width)
    gather = helper.make_node("Gather", ["w", "ids"], ["e"], axis=0)
    inputs = {"x": (FLOAT, [6, width]), "w": (FLOAT, [OUT, width]), "ids": (INT64, ["count"])}
    found = model([gather, GEMM], inputs, {"e": (FLOAT, None), "y": (FLOAT, None)})
    weight_of(found.graph, "w")
    quantize_weights(found, quantization)
    assert "Gather" not in operators(found) and operators(found).count("Slice") == (width % 32 > 0)
    stored = parts(quantization)
    weight = dequantize(quantization, "w", stored[f"w{PACKED}"].ravel(), stored[f"w{SCALES}"].ravel())
    stored[f"w{ROWS}"] = stored[f"w{PACKED}"].reshape(quantization.part_shape("w", ROWS))
    x = X.reshape(6, WIDTH)[:, :width]
    e, y = run(found, {"x": x, "ids": np.array([5, 0])}, stored)
    np.testing.assert_allclose(e, weight[[5, 0]], rtol=1e-6)
    np.testing.assert_allclose(y, x @ weight.T, rtol=1e-4, atol=1e-3)


def test_an_embedding_in_two_pieces_gives_the_rows_of_both() -> None:
    tensors = {"w[0:4]": QuantizedTensor((4, WIDTH), 32, bits=8), "w[4:6]": QuantizedTensor((2, WIDTH), 32)}
    quantization = Quantization("int4", 4, "matmulnbits", "float", tensors, (), "a tool")
    gather = helper.make_node("Gather", ["w", "ids"], ["e"], axis=0)
    inputs = {"x": (FLOAT, [6, WIDTH]), "w": (FLOAT, [OUT, WIDTH]), "ids": (INT64, ["batch", "count"])}
    found = model([gather, GEMM], inputs, {"e": (FLOAT, None), "y": (FLOAT, None)})
    weight_of(found.graph, "w")
    quantize_weights(found, quantization)
    stored, rows = {}, []
    for name in tensors:
        packed = RNG.integers(0, 256, quantization.part_shape(name, PACKED), dtype=np.uint8)
        scales = RNG.uniform(0.5, 2, quantization.part_shape(name, SCALES)).astype(np.float32)
        rows.append(dequantize(quantization, name, packed.ravel(), scales.ravel()))
        stored |= {name + PACKED: packed, name + ROWS: packed.reshape(len(packed), -1), name + SCALES: scales}
    weight, ids, x = np.concatenate(rows), np.array([[0, 3, 4], [5, 3, 1]]), X.reshape(6, WIDTH)
    e, y = run(found, {"x": x, "ids": ids}, stored)
    np.testing.assert_allclose(e, weight[ids], rtol=1e-6)
    np.testing.assert_allclose(y, x @ weight.T, rtol=1e-4, atol=1e-3)
    assert [value.name for value in found.graph.outputs] == ["e", "y"]


def test_a_missing_weight_or_an_unsupported_reader_is_refused() -> None:
    with pytest.raises(ValueError, match="the graph has no weight w"):
        quantize_weights(model([], {"x": (FLOAT, [1])}, {}), record("qdq"))
    with pytest.raises(
        LucidError, match=r"w is read by input 1 of Gemm, which is not .* qdq. Keep it with --keep-float"
    ):
        quantize_weights(product("Gemm"), record("qdq"))
    found = model([helper.make_node("Relu", ["w"], ["y"])], {"w": (FLOAT, [OUT, WIDTH])}, {"y": (FLOAT, None)})
    weight_of(found.graph, "w")
    with pytest.raises(LucidError, match="w is read by input 0 of Relu"):
        quantize_weights(found, record("matmulnbits"))


OUT, WIDTH = 6, 64


def two_products() -> ir.Model:
    """Two ``MatMul`` nodes of the same input: another node reads the first, and the second is an output."""
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"]),
        helper.make_node("MatMul", ["x", "w"], ["b"]),
        helper.make_node("Neg", ["a"], ["c"]),
    ]
    shapes = {"x": (FLOAT, ["batch", "sequence", WIDTH]), "v": (FLOAT, [WIDTH, OUT]), "w": (FLOAT, [WIDTH, OUT])}
    found = model(nodes, shapes, {"b": (FLOAT, None), "c": (FLOAT, None)})
    weight_of(found.graph, "v"), weight_of(found.graph, "w")
    return found


@pytest.mark.parametrize("form", ["matmulnbits", "qdq"])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_with_offsets_use_the_dequantized_weights(bits: int, form: str) -> None:
    tensors = {name: QuantizedTensor((OUT, WIDTH), 16, offsets=True) for name in "vw"}
    record, found = Quantization(f"int{bits}", bits, form, "float", tensors, (), "a tool"), two_products()
    quantize_weights(found, record)
    assert operators(found).count("ReduceSum") == 1 and operators(found).count("Add") == 2
    stored: dict[str, np.ndarray] = {}
    weights = {}
    for name in "vw":
        packed = RNG.integers(0, 256, record.part_size(name, PACKED, "float32"), dtype=np.uint8)
        scales = RNG.uniform(0.5, 2, record.part_shape(name, SCALES)).astype(np.float32)
        offsets = RNG.uniform(-9, 9, record.part_shape(name, OFFSETS)).astype(np.float32)
        weights[name] = dequantize(record, name, packed, scales.ravel(), offsets.ravel())
        shape, kind = record.part_shape(name, PACKED), record.packed_dtype(name)
        numbers = packed if kind == "int4" else packed.view(kind).reshape(shape)
        if kind == "int4":
            whole = np.stack([packed & 15, packed >> 4], axis=-1).reshape(shape).astype(np.int8)
            numbers = np.where(whole > 7, whole - 16, whole).astype(np.int8)
        stored |= {name + PACKED: numbers, name + SCALES: scales, name + OFFSETS: offsets}
    b, c = run(found, {"x": X}, stored)
    np.testing.assert_allclose(b, X @ weights["w"].T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(c, -(X @ weights["v"].T), rtol=1e-4, atol=1e-3)
    assert [value.name for value in found.graph.outputs] == ["b", "c"]
