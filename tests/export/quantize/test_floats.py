"""Rounding to E4M3 and NVFP4, against the nearest of all numbers; ModelOpt's own code: tests/compat."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.artifact.float_formats import E2M1, E4M3
from lucid_deploy.export.quantize.floats import round_to_fp8, round_to_nvfp4

WEIGHT = torch.randn(24, 64, generator=torch.Generator().manual_seed(0)) * 0.05
WEIGHT[3, :16], WEIGHT[5, 16:32] = 0.0, WEIGHT[5, 16:32] * 1e-6
VALUES = {8: np.unique(E4M3[np.isfinite(E4M3)]), 4: np.unique(E2M1)}


def distance(quotients: np.ndarray, bits: int) -> np.ndarray:
    """Return how far the nearest number is."""
    return np.abs(quotients[..., None] - VALUES[bits]).min(axis=-1)


def test_fp8_is_the_nearest_and_its_scale_the_largest_over_448() -> None:
    codes, scale = round_to_fp8(WEIGHT)
    assert scale == np.float32(WEIGHT.abs().max().item()) / np.float32(448)
    quotients = (WEIGHT / torch.from_numpy(scale)).numpy()
    assert np.array_equal(np.abs(E4M3[codes] - quotients), distance(quotients, 8))
    assert np.abs(E4M3[codes]).max() == 448


def test_nvfp4_is_the_nearest_and_its_scales_too() -> None:
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
def test_half_way_is_even(value: float, wanted: float) -> None:
    """A block whose largest element is 6, so that all scales are 1."""
    weight = torch.full((1, 16), value)
    weight[0, 0] = 6.0
    codes, scales, whole = round_to_nvfp4(weight * 448)
    assert E4M3[scales] * whole == 448 and E2M1[codes][0, 1] == wanted


def test_zeros() -> None:
    codes, scale = round_to_fp8(torch.zeros(2, 16))
    assert not codes.any() and scale > 0
    codes, scales, whole = round_to_nvfp4(torch.zeros(2, 16))
    assert not codes.any() and whole == 1 and (E4M3[scales] == 1).all()
