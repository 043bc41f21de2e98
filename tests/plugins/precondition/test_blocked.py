"""The blocked solve against the dense one, on keys that a wrong solve would not survive."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.precondition.torch_operator import precondition
from tests.plugins.problems import keys, relative

SIZES = [1, 63, 64, 65, 128, 257]
PASTS = [0, 100]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("past", PASTS)
@pytest.mark.parametrize("correlation", [0.9, 1.0])
def test_blocked_matches_the_reference(n: int, past: int, correlation: float) -> None:
    k, v = keys(correlation, 1, 2, past + n, 20), torch.randn(1, 2, past + n, 20, dtype=torch.float64)
    mask = torch.rand(1, past + n) > 0.1
    full = precondition(k, v, mask=mask, implementation="reference")
    y = precondition(k[:, :, past:], v[:, :, past:], k[:, :, :past], full[:, :, :past], mask)
    assert y.shape == (1, 2, n, 20)
    torch.testing.assert_close(y, full[:, :, past:], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("correlation", [0.9, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_blocked_is_as_exact_as_the_reference_in_its_type(correlation: float, dtype: torch.dtype) -> None:
    k = keys(correlation, 1, 2, 600, 68).to(dtype)
    v = torch.randn(1, 2, 600, 68).to(dtype)
    exact = precondition(k.double(), v.double(), implementation="reference")
    baseline = relative(precondition(k, v, implementation="reference"), exact)
    assert relative(precondition(k, v, implementation="blocked"), exact) <= 2 * baseline
