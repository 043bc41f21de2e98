"""What stored bytes of quantized weights mean, against the operators that read them in a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from lucid_deploy.artifact.quantization import PACKED, SCALES, Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import dequantize, unpack

NAME = "model.layers.0.mlp.up_proj.weight"


def record(scheme: str, form: str, shape: tuple[int, int], block: int) -> Quantization:
    bits = {"int8": 8, "int4": 4}[scheme]
    return Quantization(scheme, bits, form, "float", {NAME: QuantizedTensor(shape, block)}, (), "a tool")


def stored(quantization: Quantization) -> tuple[np.ndarray, np.ndarray]:
    """Return random bytes and scales, as many as the record says."""
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, quantization.packed_size(NAME), dtype=np.uint8)
    return packed, rng.uniform(0.5, 2, quantization.part_shape(NAME, SCALES)).astype(np.float32)


def run(node: onnx.NodeProto, initializers: list[onnx.TensorProto], x: np.ndarray) -> np.ndarray:
    """Run a node that makes ``y`` in onnxruntime."""
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
    graph = helper.make_graph([node], "graph", info[:1], info[1:], initializers)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def raw(name: str, kind: int, shape: tuple[int, ...], data: Any) -> onnx.TensorProto:
    return onnx.TensorProto(name=name, data_type=kind, dims=shape, raw_data=data.tobytes())


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize(("width", "block"), [(64, 16), (80, 32)])
def test_matmulnbits_multiplies_by_what_dequantize_gives(scheme: str, width: int, block: int) -> None:
    quantization = record(scheme, "matmulnbits", (5, width), block)
    packed, scales = stored(quantization)
    attributes = {"K": width, "N": 5, "bits": quantization.bits, "block_size": block, "accuracy_level": 0}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft", **attributes)
    parts = [
        raw("w", TensorProto.UINT8, quantization.part_shape(NAME, PACKED), packed),
        raw("s", TensorProto.FLOAT, quantization.part_shape(NAME, SCALES), scales),
    ]
    weight = run(node, parts, np.eye(width, dtype=np.float32)).T
    np.testing.assert_allclose(dequantize(quantization, NAME, packed, scales), weight, rtol=1e-6)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_dequantize_linear_makes_what_dequantize_gives(scheme: str) -> None:
    """The weight is stored ``[in, out]`` there; 3 outputs of 32 inputs, so that int4 rows end inside of a byte."""
    quantization = record(scheme, "qdq", (3, 32), 16)
    packed, scales = stored(quantization)
    node = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], axis=0, block_size=16)
    parts = [
        raw("w", TensorProto.DataType.Value(scheme.upper()), quantization.part_shape(NAME, PACKED), packed),
        raw("s", TensorProto.FLOAT, quantization.part_shape(NAME, SCALES), scales),
    ]
    weight = run(node, parts, np.eye(1, dtype=np.float32)).T
    np.testing.assert_allclose(dequantize(quantization, NAME, packed, scales), weight, rtol=1e-6)
    numbers, factors = unpack(quantization, NAME, packed, scales)
    assert numbers.dtype == np.int8 and factors.shape == (3, 2)
    assert quantization.has_positive_scales(NAME) == (scheme == "int8")
