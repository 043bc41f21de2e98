"""The script around the simulation: its input, its target, its table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from serve_simulation import fewest, measured_times, meets, table

ROOT = Path(__file__).parents[2]


def test_the_fewest_replicas_are_found_between_known_sizes() -> None:
    def figures(replicas: int) -> dict[str, Any]:
        return {"refused": 0, "first_token_seconds": {"p99": 0.5 if replicas >= 11 else 3.0}}

    assert fewest(figures, {size: figures(size) for size in (1, 2, 4, 8, 16, 32)}) == 11
    assert fewest(figures, {size: figures(size) for size in (16, 32)}) == 11
    assert fewest(figures, {size: figures(size) for size in (1, 2)}) is None
    assert not meets({"refused": 1, "first_token_seconds": {"p99": 0.1}})


def test_the_times_are_those_of_the_results() -> None:
    times = measured_times()
    measured = json.loads((ROOT / "benchmarks/results/prefill.json").read_text())["measurements"]
    own = {item["length"]: item["median"] for item in measured if item["contender"] == "lucid-growing"}
    for tokens, seconds in own.items():
        assert times.prompt(0, tokens) == pytest.approx(seconds, rel=0.1)  # two parameters, three lengths
    assert times.rows == (1, 2, 4, 8, 16)


def test_the_docs_show_the_results() -> None:
    """The table in the docs is the one of the results that are kept."""
    results = json.loads((ROOT / "benchmarks/results/serve_simulation.json").read_text())
    page = (ROOT / "docs/serving.md").read_text()
    for line in table(results["results"]):
        assert line in page
