"""Ways to solve the triangular system: right in float64, and what low precision and powers of X do to them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lucid_deploy.bench.solvers import DTYPES, SOLVERS, entries, relative_error, solve
from lucid_deploy.plugins.precondition.reference import precondition_reference


def system(n: int, correlation: float, d: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """X, V and the exact Y of keys that share a direction, two of them equal."""
    random = torch.Generator().manual_seed(1)
    common = torch.randn(2, 1, d, generator=random, dtype=torch.float64)
    own = torch.randn(2, n, d, generator=random, dtype=torch.float64)
    k = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    k[:, n // 2] = k[:, 1]
    v = torch.randn(2, n, d, generator=random, dtype=torch.float64)
    none = k[None, :, :0]
    exact = precondition_reference(k[None], v[None], none, none, None, 1e-6)[0]
    return entries(k, 1e-6), v, exact


@pytest.mark.parametrize("n", [2, 63, 64, 65, 130])
@pytest.mark.parametrize("name", SOLVERS)
def test_all_are_the_inverse_where_rounding_is_small(name: str, n: int) -> None:
    x, v, exact = system(n, 0.0)
    assert relative_error(solve(name, "float64", x, v), exact) < 1e-11


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["blocked", "substitution"])
def test_stable_ways_stay_near_the_dense_solve(name: str, dtype: str) -> None:
    x, v, exact = system(200, 0.95)
    dense = relative_error(solve("dense", dtype, x, v), exact)
    assert relative_error(solve(name, dtype, x, v), exact) < 4 * dense


def test_powers_lose_everything_where_keys_resemble_each_other() -> None:
    x, v, exact = system(200, 0.95)
    assert relative_error(solve("dense", "float32", x, v), exact) < 1e-5
    assert relative_error(solve("powers", "float32", x, v), exact) > 1


def test_numbers_that_are_not_finite_count_as_infinitely_wrong() -> None:
    assert relative_error(torch.full((1, 2, 2), math.nan), torch.ones(1, 2, 2, dtype=torch.float64)) == math.inf
