"""Products with weights whose blocks have offsets compute what these weights mean."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper

from lucid_deploy.artifact.quantization import OFFSETS, PACKED, SCALES, Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.export.passes import quantize_weights
from tests.export.passes.graphs import FLOAT, model, operators, run, weight_of

OUT, WIDTH = 6, 64
RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, WIDTH)).astype(np.float32)


def two_products() -> ir.Model:
    """Two products that read the same input, a node that reads one of them, and an output that is one."""
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
def test_products_are_of_what_the_stored_numbers_mean(bits: int, form: str) -> None:
    tensors = {name: QuantizedTensor((OUT, WIDTH), 16, offsets=True) for name in "vw"}
    record, found = Quantization(f"int{bits}", bits, form, "float", tensors, (), "a tool"), two_products()
    quantize_weights(found, record)
    assert operators(found).count("ReduceSum") == 1 and operators(found).count("Add") == 2
    stored: dict[str, np.ndarray] = {}
    weights = {}
    for name in "vw":
        packed = RNG.integers(0, 256, record.packed_size(name), dtype=np.uint8)
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
