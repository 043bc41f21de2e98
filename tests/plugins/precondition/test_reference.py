"""The dense formula against a solve row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lucid_deploy.plugins.precondition.torch_operator import precondition
from tests.plugins.problems import keys


def solve_row_by_row(k: np.ndarray, v: np.ndarray, mask: np.ndarray, eps: float) -> np.ndarray:
    """One head, (T, D): y_i = v_i − Σ_{j<i} exp(k̂_i·k̂_j/√d − √d) y_j, a row at a time."""
    d = k.shape[1]
    k_hat = k / np.sqrt((k * k).mean(1, keepdims=True) + eps)
    y = v.copy()
    for i in range(len(k)):
        for j in range(i):
            if mask[i] and mask[j]:
                y[i] -= np.exp(k_hat[i] @ k_hat[j] / math.sqrt(d) - math.sqrt(d)) * y[j]
    return y


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
@pytest.mark.parametrize("correlation", [0.9, 0.99, 1.0])
def test_precondition_solves_row_by_row(implementation: str, correlation: float) -> None:
    k, v = keys(correlation, 2, 2, 40, 12), torch.randn(2, 2, 40, 12, dtype=torch.float64)
    mask = torch.ones(2, 40, dtype=torch.bool)
    mask[0, :5] = False
    mask[1, 17] = mask[1, 33:] = False
    y = precondition(k, v, mask=mask, eps=1e-5, implementation=implementation)
    for row in range(2):
        for head in range(2):
            wanted = solve_row_by_row(k[row, head].numpy(), v[row, head].numpy(), mask[row].numpy(), 1e-5)
            np.testing.assert_allclose(y[row, head].numpy(), wanted, rtol=1e-9, atol=1e-11)
    for past in (1, 17, 39):  # after a known past, new rows are the same as without one
        new, old = slice(past, None), slice(None, past)
        later = (k[:, :, new], v[:, :, new], k[:, :, old], y[:, :, old])
        found = precondition(*later, mask, 1e-5, implementation)
        np.testing.assert_allclose(found.numpy(), y[:, :, new].numpy(), rtol=1e-9, atol=1e-11)
