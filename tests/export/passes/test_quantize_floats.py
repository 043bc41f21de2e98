"""Graphs with weights in E4M3 and NVFP4 and rounded inputs, in ONNX's evaluator and onnxruntime, against PyTorch."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import helper
from onnx.reference import ReferenceEvaluator

from lucid_deploy.artifact.quantization import INPUT_SCALE, PACKED, SCALES, WHOLE_SCALE, Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.export.passes.quantize_weights import quantize_weights
from lucid_deploy.export.quantize.floats import parts_taken_over, rounded_parts
from lucid_deploy.model.packed.weight import FloatWeight
from lucid_deploy.runtimes.torch.quantized_activations import round_to_fp8
from tests.export.passes.graphs import FLOAT, model, weight_of
from tests.model.packed.floats import blocks

OUT, WIDTH = 6, 64
WEIGHT = torch.randn(OUT, WIDTH, generator=torch.Generator().manual_seed(0)) * 0.05
X = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 1, 3)[:, None]
X[1, 2] = 0.0  # a token of zeros
_TYPES: dict[str, Any] = {"float32": np.float32, "float8e4m3fn": ml_dtypes.float8_e4m3fn}
_TYPES["float4e2m1"] = ml_dtypes.float4_e2m1fn


def quantized(quantization: Quantization, parts: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a graph that multiplies by each weight of the record, with the weights' parts filled in."""
    names = list(quantization.tensors)
    nodes = [helper.make_node("MatMul", ["x", name], [f"y_{name}"]) for name in names]
    inputs = {"x": (FLOAT, ["batch", "sequence", WIDTH]), **{name: (FLOAT, [WIDTH, OUT]) for name in names}}
    made = model(nodes, inputs, {f"y_{name}": (FLOAT, None) for name in names})
    for name in names:
        weight_of(made.graph, name)
    quantize_weights(made, quantization)
    for value in list(made.graph.initializers.values()):
        if value.const_value is None:
            assert value.name is not None and value.dtype is not None and value.shape is not None
            raw = parts[value.name[1:]].tobytes()
            proto = onnx.TensorProto(name=value.name, data_type=int(value.dtype), dims=list(value.shape), raw_data=raw)
            value.const_value = ir.serde.deserialize_tensor(proto)
    found = ir.serde.serialize_model(made)
    onnx.checker.check_model(found, full_check=True)
    return found


def evaluated(found: onnx.ModelProto) -> np.ndarray:
    result: np.ndarray = ReferenceEvaluator(found).run(None, {"x": X.numpy()})[0]
    return result


def by_onnxruntime(found: onnx.ModelProto) -> np.ndarray:
    result: np.ndarray = onnxruntime.InferenceSession(found.SerializeToString()).run(None, {"x": X.numpy()})[0]
    return result


def assert_product(found: np.ndarray, inputs: torch.Tensor, weight: np.ndarray) -> None:
    """Within the bound of sums in float32 (Higham, Accuracy and Stability, 3.5), and a rounded weight and input."""
    exact = inputs.double().numpy()
    allowed = (WIDTH + 2) * 2.0**-24 * (np.abs(exact) @ np.abs(weight).T)
    assert (np.abs(found - exact @ weight.T) <= allowed).all()


def test_graphs_compute_with_the_rounded_weights() -> None:
    quantization = record("fp8", QuantizedTensor((OUT, WIDTH), WIDTH, granularity="tensor"))
    parts = rounded_parts(WEIGHT, quantization)
    weight = dequantize(quantization, "w", parts[PACKED], parts[SCALES].view(np.float32))
    found = quantized(quantization, parts)
    for run in (evaluated, by_onnxruntime):
        assert_product(run(found), X, weight)
    quantization = record("nvfp4", QuantizedTensor((OUT, WIDTH), 16))
    parts = rounded_parts(WEIGHT, quantization)
    factors = parts[SCALES].view(ml_dtypes.float8_e4m3fn).astype(np.float32) * parts[WHOLE_SCALE].view(np.float32)
    weight = dequantize(quantization, "w", parts[PACKED], factors)
    found = quantized(quantization, parts)
    assert [node.op_type for node in found.graph.node] == ["DequantizeLinear", "DequantizeLinear", "MatMul"]
    assert_product(evaluated(found), X, weight)


@pytest.mark.parametrize(
    ("activations", "size", "high", "wide"),
    [("fp8-static", None, OUT, WIDTH), ("fp8-token", None, 1, WIDTH), ("fp8-group", 16, 4, 32)],
)
def test_graphs_round_inputs_as_the_record_says(activations: str, size: int | None, high: int, wide: int) -> None:
    numbers, scales = blocks(WEIGHT, high, wide, torch.float32)
    shared = {OUT: "tensor", 1: "channel"}.get(high, "block")
    quantization = record("fp8", QuantizedTensor((OUT, WIDTH), wide, granularity=shared), activations, size, "wv")
    stored = FloatWeight(numbers.view(torch.uint8), scales, (high, wide), torch.tensor(0.02))
    parts = parts_taken_over(stored, "w", quantization)
    weight = dequantize(quantization, "w", parts[PACKED], parts[SCALES].view(np.float32))
    found = quantized(quantization, parts)
    inputs = round_to_fp8(X, 0.02 if activations == "fp8-static" else None, size)
    assert not inputs.equal(X) and X.abs().max() > 448 * 0.02, "some are beyond the range of the stored scale"
    for run in (evaluated, by_onnxruntime):
        assert_product(run(found), inputs, weight)
    static = activations == "fp8-static"
    rounded = [node.op_type for node in found.graph.node].count("QuantizeLinear" if static else "ReduceMax")
    assert rounded == (2 if static else 1), "weights share rounded inputs unless each has an input scale"
    assert (f"w{INPUT_SCALE}" in [tensor.name for tensor in found.graph.initializer]) == static


def record(
    scheme: str, tensor: QuantizedTensor, activations: str = "float", size: int | None = None, names: str = "w"
) -> Quantization:
    bits = {"fp8": 8, "nvfp4": 4}[scheme]
    tensors = dict.fromkeys(names, tensor)
    return Quantization(scheme, bits, "qdq", activations, tensors, (), "a tool", input_block=size)
