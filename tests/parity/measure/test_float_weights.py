"""Weights in E4M3 and NVFP4 are what rounding to nearest gives; a number or a scale that is not is found."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.artifact.quantization_names import PACKED, SCALES, WHOLE_SCALE
from lucid_deploy.artifact.quantized_tensor import QuantizedTensor
from lucid_deploy.export.float_parts import rounded_parts
from lucid_deploy.parity.measure.float_weights import float_difference

WEIGHT = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) * 0.05
WEIGHT[3, :16], WEIGHT[5, 16:32] = 0.0, WEIGHT[5, 16:32] * 1e-6


def rounded(scheme: str, weight: torch.Tensor) -> tuple[Quantization, np.ndarray, np.ndarray]:
    if scheme == "fp8":
        tensor = QuantizedTensor((24, 64), 64, granularity="tensor")
        quantization = Quantization("fp8", 8, "qdq", "float", {"w": tensor}, (), "a tool")
        parts = rounded_parts(weight, "w", quantization)
        return quantization, parts[PACKED], parts[SCALES].view(np.float32)
    quantization = Quantization("nvfp4", 4, "qdq", "float", {"w": QuantizedTensor((24, 64), 16)}, (), "a tool")
    parts = rounded_parts(weight, "w", quantization)
    scales = parts[SCALES].view(ml_dtypes.float8_e4m3fn).astype(np.float32) * parts[WHOLE_SCALE].view(np.float32)
    return quantization, parts[PACKED], scales


@pytest.mark.parametrize("scheme", ["fp8", "nvfp4"])
@pytest.mark.parametrize("weight", [WEIGHT, torch.zeros(24, 64)], ids=["normal", "zeros"])
def test_what_is_rounded_to_nearest_is_right(scheme: str, weight: torch.Tensor) -> None:
    assert float_difference(*_with_name(rounded(scheme, weight)), weight.numpy()) is None


@pytest.mark.parametrize("scheme", ["fp8", "nvfp4"])
def test_faults_are_found(scheme: str) -> None:
    quantization, packed, scales = rounded(scheme, WEIGHT)
    moved = packed.copy()
    moved[70] ^= 1  # the next number, up or down
    assert "times its scale" in str(float_difference(quantization, "w", moved, scales, WEIGHT.numpy()))
    wrong = scales.copy()
    wrong.reshape(-1)[-1] *= 1.14  # more than half of the spacing of E4M3
    found = str(float_difference(quantization, "w", packed, wrong, WEIGHT.numpy()))
    assert found.startswith("the scale of row"), found
    if scheme == "fp8":
        assert "the scale" in str(float_difference(quantization, "w", packed, scales * 1.00001, WEIGHT.numpy()))
    other = WEIGHT.flip(0).numpy()
    assert float_difference(quantization, "w", packed, scales, other) is not None


def _with_name(parts: tuple[Quantization, np.ndarray, np.ndarray]) -> tuple[Quantization, str, np.ndarray, np.ndarray]:
    return parts[0], "w", *parts[1:]
