"""The bytes of weights in E4M3 and NVFP4 mean what was rounded, or what the checkpoint meant."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.artifact.float_formats import E2M1, E4M3
from lucid_deploy.artifact.quantization import INPUT_SCALE, PACKED, SCALES, WHOLE_SCALE, Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.export.quantize.float_parts import rounded_parts, stored_parts
from lucid_deploy.export.quantize.floats import round_to_fp8, round_to_nvfp4
from lucid_deploy.model.packed.weight import FloatWeight
from tests.model.packed.floats import blocks, meaning

WEIGHT = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))


def record(scheme: str, tensor: QuantizedTensor, activations: str = "float") -> Quantization:
    return Quantization(scheme, {"fp8": 8, "nvfp4": 4}[scheme], "qdq", activations, {"w": tensor}, (), "a tool")


def test_rounded() -> None:
    quantization = record("fp8", QuantizedTensor((24, 48), 48, granularity="tensor"))
    parts = rounded_parts(WEIGHT, "w", quantization)
    codes, scale = round_to_fp8(WEIGHT)
    found = dequantize(quantization, "w", parts[PACKED], parts[SCALES].view(np.float32))
    assert np.array_equal(found, E4M3[codes].astype(float) * float(scale))
    quantization = record("nvfp4", QuantizedTensor((24, 48), 16))
    parts = rounded_parts(WEIGHT, "w", quantization)
    assert {name: len(part) for name, part in parts.items()} == {PACKED: 576, SCALES: 72, WHOLE_SCALE: 4}
    assert [quantization.part_size("w", part, "float16") for part in parts] == [576, 72, 4]
    numbers, scales, whole = round_to_nvfp4(WEIGHT)
    factors = E4M3[parts[SCALES]] * parts[WHOLE_SCALE].view(np.float32)
    wanted = E2M1[numbers].astype(float) * (E4M3[scales] * whole).astype(float).repeat(16, axis=1)
    assert np.array_equal(dequantize(quantization, "w", parts[PACKED], factors), wanted)


@pytest.mark.parametrize(
    ("high", "wide", "tensor"),
    [
        (24, 48, QuantizedTensor((24, 48), 48, granularity="tensor")),
        (1, 48, QuantizedTensor((24, 48), 48, granularity="channel")),
        (7, 48, QuantizedTensor((24, 48), 48, granularity="channel")),
        (7, 32, QuantizedTensor((24, 48), 16)),
        (24, 16, QuantizedTensor((24, 48), 16)),
    ],
)
def test_taken_over(high: int, wide: int, tensor: QuantizedTensor) -> None:
    numbers, scales = blocks(WEIGHT, high, wide, torch.float32)
    weight = FloatWeight(numbers.view(torch.uint8), scales, (high, wide), torch.tensor(0.5))
    quantization = record("fp8", tensor, "fp8-static")
    parts = stored_parts(weight, "w", quantization)
    assert parts[INPUT_SCALE].view(np.float32) == 0.5
    found = dequantize(quantization, "w", parts[PACKED], parts[SCALES].view(np.float32))
    assert np.array_equal(found, meaning(numbers, scales, high, wide).numpy())


@pytest.mark.parametrize(
    ("high", "wide", "tensor"),
    [(24, 48, QuantizedTensor((24, 48), 48, granularity="tensor")), (7, 32, QuantizedTensor((24, 48), 16))],
)
def test_scales_of_zero_become_positive(high: int, wide: int, tensor: QuantizedTensor) -> None:
    """As TensorRT takes them; the weight is the same."""
    numbers, scales = blocks(WEIGHT, high, wide, torch.float32)
    scales[0, -1] = 0
    quantization = record("fp8", tensor)
    parts = stored_parts(FloatWeight(numbers.view(torch.uint8), scales, (high, wide)), "w", quantization)
    assert (parts[SCALES].view(np.float32) > 0).all()
    found = dequantize(quantization, "w", parts[PACKED], parts[SCALES].view(np.float32))
    assert np.array_equal(found, meaning(numbers, scales, high, wide).numpy()) and not found[:high, -8:].any()
