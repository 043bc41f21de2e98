"""Rounding to E4M3 and NVFP4, against the nearest of all numbers; ModelOpt's own code: tests/compat."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.artifact.quantization import INPUT_SCALE, PACKED, SCALES, WHOLE_SCALE, Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import E2M1, E4M3, dequantize
from lucid_deploy.export.quantize.floats import parts_taken_over, round_to_fp8, round_to_nvfp4, rounded_parts
from lucid_deploy.model.packed.weight import FloatWeight
from tests.model.packed.floats import blocks, meaning

WEIGHT = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) * 0.05
WEIGHT[3, :16], WEIGHT[5, 16:32] = 0.0, WEIGHT[5, 16:32] * 1e-6
VALUES = {8: np.unique(E4M3[np.isfinite(E4M3)]), 4: np.unique(E2M1)}


def distance(quotients: np.ndarray, bits: int) -> np.ndarray:
    """Return the distance to the nearest number of the format."""
    return np.abs(quotients[..., None] - VALUES[bits]).min(axis=-1)


def test_fp8_rounds_to_the_nearest_with_the_largest_over_448_as_scale() -> None:
    codes, scale = round_to_fp8(WEIGHT)
    assert scale == np.float32(WEIGHT.abs().max().item()) / np.float32(448)
    quotients = (WEIGHT / torch.from_numpy(scale)).numpy()
    assert np.array_equal(np.abs(E4M3[codes] - quotients), distance(quotients, 8))
    assert np.abs(E4M3[codes]).max() == 448


def test_nvfp4_rounds_values_and_scales_to_the_nearest() -> None:
    codes, scales, whole = round_to_nvfp4(WEIGHT)
    assert whole == np.float32(WEIGHT.abs().max().item()) / np.float32(448 * 6)
    largest = WEIGHT.unflatten(1, (-1, 16)).abs().amax(-1).numpy() / (6 * whole)
    assert E4M3[scales][3, 0] == 1 and E4M3[scales][5, 1] == 2.0**-9, "a block of zeros, and one of tiny numbers"
    ordinary = largest >= 2.0**-9
    assert np.array_equal(np.abs(E4M3[scales] - largest)[ordinary], distance(largest[ordinary], 8))
    steps = (E4M3[scales] * whole).repeat(16, axis=1)
    quotients = np.clip(WEIGHT.numpy() / steps, -6, 6)
    assert np.array_equal(np.abs(E2M1[codes] - quotients), distance(quotients, 4))


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5.0, 4), (-5.0, -4), (5.01, 6)],
)
def test_ties_go_to_the_even_code(value: float, wanted: float) -> None:
    """A block whose largest element is 6, so that all scales are 1."""
    weight = torch.full((1, 16), value)
    weight[0, 0] = 6.0
    codes, scales, whole = round_to_nvfp4(weight * 448)
    assert E4M3[scales] * whole == 448 and E2M1[codes][0, 1] == wanted


def test_weights_of_zeros_get_a_positive_scale() -> None:
    codes, scale = round_to_fp8(torch.zeros(2, 16))
    assert not codes.any() and scale > 0
    codes, scales, whole = round_to_nvfp4(torch.zeros(2, 16))
    assert not codes.any() and whole == 1 and (E4M3[scales] == 1).all()


MATRIX = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))


def record(scheme: str, tensor: QuantizedTensor, activations: str = "float") -> Quantization:
    return Quantization(scheme, {"fp8": 8, "nvfp4": 4}[scheme], "qdq", activations, {"w": tensor}, (), "a tool")


def test_rounded_parts_dequantize_to_the_rounded_weight() -> None:
    quantization = record("fp8", QuantizedTensor((24, 48), 48, granularity="tensor"))
    parts = rounded_parts(MATRIX, quantization)
    codes, scale = round_to_fp8(MATRIX)
    found = dequantize(quantization, "w", parts[PACKED], parts[SCALES].view(np.float32))
    assert np.array_equal(found, E4M3[codes].astype(float) * float(scale))
    quantization = record("nvfp4", QuantizedTensor((24, 48), 16))
    parts = rounded_parts(MATRIX, quantization)
    assert {name: len(part) for name, part in parts.items()} == {PACKED: 576, SCALES: 72, WHOLE_SCALE: 4}
    assert [quantization.part_size("w", part, "float16") for part in parts] == [576, 72, 4]
    numbers, scales, whole = round_to_nvfp4(MATRIX)
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
def test_parts_taken_over_dequantize_to_the_checkpoints_weight(high: int, wide: int, tensor: QuantizedTensor) -> None:
    numbers, scales = blocks(MATRIX, high, wide, torch.float32)
    weight = FloatWeight(numbers.view(torch.uint8), scales, (high, wide), torch.tensor(0.5))
    quantization = record("fp8", tensor, "fp8-static")
    parts = parts_taken_over(weight, "w", quantization)
    assert parts[INPUT_SCALE].view(np.float32) == 0.5
    found = dequantize(quantization, "w", parts[PACKED], parts[SCALES].view(np.float32))
    assert np.array_equal(found, meaning(numbers, scales, high, wide).numpy())


@pytest.mark.parametrize(
    ("high", "wide", "tensor"),
    [(24, 48, QuantizedTensor((24, 48), 48, granularity="tensor")), (7, 32, QuantizedTensor((24, 48), 16))],
)
def test_scales_of_zero_become_positive(high: int, wide: int, tensor: QuantizedTensor) -> None:
    """TensorRT accepts only positive scales; the weight is the same."""
    numbers, scales = blocks(MATRIX, high, wide, torch.float32)
    scales[0, -1] = 0
    quantization = record("fp8", tensor)
    parts = parts_taken_over(FloatWeight(numbers.view(torch.uint8), scales, (high, wide)), "w", quantization)
    assert (parts[SCALES].view(np.float32) > 0).all()
    found = dequantize(quantization, "w", parts[PACKED], parts[SCALES].view(np.float32))
    assert np.array_equal(found, meaning(numbers, scales, high, wide).numpy()) and not found[:high, -8:].any()
