"""Ways to solve side by side: quality, error and time, by length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench.solver_comparison import compare_solvers
from lucid_deploy.bench.solvers import DTYPES, SOLVERS
from lucid_deploy.errors import LucidError

Exported = Callable[..., tuple[Path, Artifact]]


def test_right_solvers_keep_the_rounding_of_their_type_and_powers_do_not(demo: Callable[..., Artifact]) -> None:
    """On the bundled model's own keys: quality, error and time of each way."""
    rows = compare_solvers(demo(), [256], questions=4, rounds=1)
    found = {(row["solver"], row["dtype"]): row for row in rows}
    assert list(found) == [(name, dtype) for name in SOLVERS for dtype in DTYPES]
    units = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
    for (name, dtype), row in found.items():
        assert row["milliseconds"] > 0 and row["needles"]["count"] == 4
        if name != "powers":
            assert units[dtype] / 4 < row["error"] < 16 * units[dtype]  # of rounded inputs; seen: 0.5 to 4 of them
            assert row["same_best"] > 0.97 and row["needles"]["right"] == 4
    assert found["powers", "float32"]["error"] > 1
    assert found["powers", "float16"]["error"] is None
    assert all(found["powers", dtype]["same_best"] < 0.9 for dtype in ("float16", "bfloat16"))
    assert found["powers", "float16"]["needles"]["right"] == 0


def test_a_model_without_the_words_is_not_asked(exported: Exported) -> None:
    rows = compare_solvers(exported()[1], [20], questions=4, rounds=1)
    assert {row["needles"] for row in rows} == {None}
    assert all(row["same_best"] == 1 for row in rows if row["dtype"] == "float32")


@pytest.mark.parametrize("cache_dtype", ["float16", "int8"])
def test_a_cache_that_rounds_changes_nothing(cache_dtype: str, exported: Exported) -> None:
    """The exact Y was read from it: rounded in float16, and no number at all in int8."""
    plain, rounded = (
        compare_solvers(exported(**changes)[1], [20], questions=4, rounds=1)
        for changes in ({}, {"cache_dtype": cache_dtype})
    )
    for row in [*plain, *rounded]:
        del row["milliseconds"]
    assert rounded == plain


@pytest.mark.parametrize(
    ("changes", "lengths", "message"),
    [
        ({"attention_type": "llama"}, [8], "has no LUCID layers, so there is no system to solve"),
        ({}, [8, 4097], r"compares up to \d+ tokens here, .*; --lengths has 4097"),
    ],
)
def test_what_cannot_be_compared(changes: dict[str, str], lengths: list[int], message: str, exported: Exported) -> None:
    with pytest.raises(LucidError, match=message):
        compare_solvers(exported(**changes)[1], lengths, questions=4, rounds=1)


def test_the_diagonal_of_training_is_another_system(exported: Exported) -> None:
    artifact = exported()[1]
    other = SimpleNamespace(directory=artifact.directory, config=replace(artifact.config, diagonal="training"))
    with pytest.raises(LucidError, match=r"exported with --diagonal training; .* Export without it"):
        compare_solvers(cast(Artifact, other), [8], questions=4, rounds=1)
