"""The bytes of quantized weights, and the scales that are folded into weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from lucid_deploy.artifact.quantization import PACKED, SCALES, Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import (
    E2M1,
    E2M1_MAX,
    E4M3,
    E4M3_LEAST,
    E4M3_MAX,
    FILE,
    decode,
    dequantize,
    read_scales,
    scaled,
    spacing,
    unpack,
    write_scales,
)
from lucid_deploy.errors import CheckFailed

NAME = "model.layers.0.mlp.up_proj.weight"


def record(scheme: str, form: str, shape: tuple[int, int], block: int) -> Quantization:
    bits = {"int8": 8, "int4": 4}[scheme]
    return Quantization(scheme, bits, form, "float", {NAME: QuantizedTensor(shape, block)}, (), "a tool")


def stored(quantization: Quantization) -> tuple[np.ndarray, np.ndarray]:
    """Return random bytes and scales, as many as the record says."""
    rng = np.random.default_rng(0)
    packed = rng.integers(0, 256, quantization.part_size(NAME, PACKED, "float32"), dtype=np.uint8)
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


def test_every_code_decodes_as_in_ml_dtypes() -> None:
    codes = np.arange(256, dtype=np.uint8)
    wanted = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(E4M3, wanted, equal_nan=True) and np.array_equal(np.signbit(E4M3), np.signbit(wanted))
    assert np.nanmax(E4M3) == E4M3_MAX and E4M3[1] == E4M3_LEAST
    halves = codes[:16].view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(E2M1, halves) and E2M1.max() == E2M1_MAX
    assert np.array_equal(decode(codes[:16].reshape(2, 8), 4), halves.reshape(2, 8))


@pytest.mark.parametrize(("bits", "table"), [(8, E4M3), (4, E2M1)])
def test_neighbours_are_a_spacing_apart(bits: int, table: np.ndarray) -> None:
    values = np.unique(table[np.isfinite(table) & (table >= 0)]).astype(np.float64)
    for between in (values[:-1], (values[:-1] + values[1:]) / 2):
        assert np.array_equal(spacing(between, bits), np.diff(values))


S, T = np.array([2.0, 0.5, 4.0], np.float32), np.array([8.0, 0.25], np.float32)
FOLDED = {"norm.weight.outputs": S, "w.weight.inputs": S, "w.weight.outputs": T, "w.bias.outputs": T}


def test_folded_scales_cancel_except_at_the_outputs() -> None:
    """All scales are powers of two, so nothing is rounded."""
    x, norm = torch.tensor([3.0, -1.0, 0.5]), torch.tensor([1.0, 2.0, 3.0])
    weight, bias = torch.arange(6.0).reshape(2, 3), torch.tensor([1.0, -2.0])
    given = x * scaled(norm, "norm.weight", FOLDED)
    found = scaled(weight, "w.weight", FOLDED) @ given + scaled(bias, "w.bias", FOLDED)
    assert (found * torch.from_numpy(T)).equal(weight @ (x * norm) + bias)
    assert scaled(weight, "other.weight", FOLDED) is weight
    assert scaled(norm.half(), "norm.weight", FOLDED).dtype == torch.float32


def test_a_file_is_written_only_if_there_are_scales(tmp_path: Path) -> None:
    write_scales(tmp_path, {})
    assert not list(tmp_path.iterdir()) and read_scales(tmp_path) == {}
    write_scales(tmp_path, FOLDED)
    found = read_scales(tmp_path)
    assert found.keys() == FOLDED.keys() and all(np.array_equal(found[name], FOLDED[name]) for name in FOLDED)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:40])
    with pytest.raises(CheckFailed, match="is damaged"):
        read_scales(tmp_path)
