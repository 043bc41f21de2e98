"""benchmarks/solvers.py: right in float64, and what low precision and powers of X do to the others."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from solvers import DTYPES, SOLVERS, compare_solvers, entries, relative_error, solve
from torch import Tensor

from lucid_deploy.artifact import Artifact
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


@pytest.mark.parametrize("n", [2, 64, 130])
@pytest.mark.parametrize("name", SOLVERS)
def test_all_are_right_where_rounding_is_small(name: str, n: int) -> None:
    x, v, exact = system(n, 0.0)
    assert relative_error(solve(name, "float64", x, v), exact) < 1e-11


def test_correlated_keys() -> None:
    """Stable ways stay near the dense solve in every type; powers lose everything even in float32."""
    x, v, exact = system(200, 0.95)
    for dtype in DTYPES:
        dense = relative_error(solve("dense", dtype, x, v), exact)
        for name in ("blocked", "substitution"):
            assert relative_error(solve(name, dtype, x, v), exact) < 4 * dense
    assert relative_error(solve("dense", "float32", x, v), exact) < 1e-5
    assert relative_error(solve("powers", "float32", x, v), exact) > 1
    assert relative_error(torch.full((1, 2, 2), math.nan), torch.ones(1, 2, 2, dtype=torch.float64)) == math.inf


def test_quality_error_and_time_on_the_bundled_model(demo: Callable[..., Artifact]) -> None:
    rows = compare_solvers(demo(), [256], questions=4, rounds=1)
    found = {(row["solver"], row["dtype"]): row for row in rows}
    assert list(found) == [(name, dtype) for name in SOLVERS for dtype in DTYPES]
    units = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
    for (name, dtype), row in found.items():
        assert row["milliseconds"] > 0 and row["needles"]["count"] == 4
        if name != "powers":
            assert units[dtype] / 4 < row["error"] < 16 * units[dtype]  # of rounded inputs; seen: 0.5 to 4 of them
            assert row["same_best"] > 0.97 and row["needles"]["right"] == 4
    assert found["powers", "float32"]["error"] > 1 and found["powers", "float16"]["error"] is None
    assert all(found["powers", dtype]["same_best"] < 0.9 for dtype in ("float16", "bfloat16"))
    assert found["powers", "float16"]["needles"]["right"] == 0
