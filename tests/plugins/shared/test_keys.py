"""Normalisation of keys."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lucid_deploy.plugins.shared.keys import compute_dtype, normalize_keys
from tests.plugins.problems import keys


def test_operators_compute_in_float32_at_least() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert compute_dtype(dtype) == torch.float32
    assert compute_dtype(torch.float64) == torch.float64


@pytest.mark.parametrize("eps", [0.0, 1e-5, 10.0])
def test_normalize_keys_matches_rms_norm(eps: float) -> None:
    k = keys(0.9, 2, 3, 7, 20)
    torch.testing.assert_close(normalize_keys(k, eps), F.rms_norm(k, (20,), eps=eps), rtol=1e-12, atol=0)


def test_the_length_of_a_key_does_not_matter_without_eps() -> None:
    k = keys(0.9, 1, 1, 5, 16)
    stretched = k * torch.logspace(-8, 8, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(normalize_keys(stretched, 0.0), normalize_keys(k, 0.0), rtol=1e-12, atol=0)
    # so that the exponent of a key with itself is 0: k̂·k̂/√d − √d
    square = normalize_keys(stretched, 0.0).square().sum(-1)
    torch.testing.assert_close(square / 4 - 4, torch.zeros_like(square), rtol=0, atol=1e-12)


def test_a_key_of_zeros_stays_finite_with_eps() -> None:
    assert torch.equal(normalize_keys(torch.zeros(1, 4), 1e-5), torch.zeros(1, 4))
