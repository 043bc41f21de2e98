"""Ways to solve the triangular system: right in float64, and what low precision and powers of X do to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench.solver_comparison import compare_solvers, use, with_solvers
from lucid_deploy.bench.solvers import DTYPES, SOLVERS, entries, relative_error, solve
from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.plugins.precondition.reference import precondition_reference

Exported = Callable[..., tuple[Path, Artifact]]


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


@pytest.mark.parametrize("way", ["dense", "blocked", "substitution"])
def test_the_model_is_the_same_with_another_solver(demo_directory: Path, way: str) -> None:
    model = load_model(Checkpoint(demo_directory), torch.float64)
    other = with_solvers(model)
    ids = torch.randint(3, 90, (2, 70), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 70, dtype=torch.bool)
    mask[1, :5] = False
    use(other, way, "float64")
    expected = model(ids, attention_mask=mask)[0][mask]
    rounded = load_model(Checkpoint(demo_directory), torch.float32)(ids, attention_mask=mask)[0][mask]
    float32_error = (rounded - expected).abs().max()
    found = other(ids, attention_mask=mask)[0][mask]
    assert (found - expected).abs().max() <= 4 * 2.0**-29 * float32_error, "float64 has 29 bits more"
    use(other, way, "bfloat16")
    assert (other(ids, attention_mask=mask)[0][mask] - expected).abs().max() > 4 * float32_error


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


def test_a_cache_that_rounds_changes_nothing(exported: Exported) -> None:
    """The exact Y comes from a cache of the model's own type; a model without the words is asked nothing."""
    plain, rounded = (
        compare_solvers(exported(**changes)[1], [20], questions=4, rounds=1)
        for changes in ({}, {"cache_dtype": "int8"})
    )
    for row in [*plain, *rounded]:
        del row["milliseconds"]
    assert rounded == plain and {row["needles"] for row in plain} == {None}
    assert all(row["same_best"] == 1 for row in plain if row["dtype"] == "float32")


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"attention_type": "llama"}, {}, "has no LUCID layers, so there is no system to solve"),
        ({}, {"max_position_embeddings": 7}, r"compares up to 7 tokens here, .*; --lengths has 8"),
        ({}, {"diagonal": "training"}, r"exported with --diagonal training; .* Export without it"),
    ],
)
def test_what_cannot_be_compared(
    changes: dict[str, str], config: dict[str, Any], message: str, exported: Exported
) -> None:
    artifact = exported(**changes)[1]
    other = SimpleNamespace(directory=artifact.directory, config=replace(artifact.config, **config))
    with pytest.raises(LucidError, match=message):
        compare_solvers(cast(Artifact, other), [8], questions=4, rounds=1)
