"""Benchmark results: ratios paired, exponents fitted, bytes counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench import Measurement
from lucid_deploy.bench.report import decode_bytes, exponents, paired_ratio

Exported = Callable[..., tuple[Path, Artifact]]


def test_ratios_are_paired_by_round() -> None:
    # A machine that becomes ten times slower halfway must not change the ratio.
    assert paired_ratio([2, 2, 20, 20], [1, 1, 10, 10]) == {"median": 2, "min": 2, "max": 2}


def test_exponent_of_a_known_curve() -> None:
    points = [Measurement("a", "prefill", 1, n, (3e-6 * n**1.5,), 0) for n in (100, 200, 800)]
    assert exponents(points)["a, prefill, batch 1"] == pytest.approx(1.5)
    assert exponents(points[:2]) == {}


def test_bytes_of_a_decode_step(exported: Exported) -> None:
    _, artifact = exported()
    weights = 10**6
    embedding = 97 * 64 * 4
    cache = 2 * 2 * 2 * 36 * 100 * 3 * 4  # K and Y, layers, heads, width, tokens, rows, bytes
    assert decode_bytes(artifact.config, "float32", weights, 3, 100) == weights - embedding + cache
