"""Choosing tokens."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.errors import CheckFailed
from lucid_deploy.generation.generate import Sampler, Sampling, filtered_probabilities

# Probabilities 0.5, 0.3, 0.15, 0.05 in another order.
PROBABILITIES = np.array([0.15, 0.5, 0.05, 0.3])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(1.0), [0.15, 0.5, 0.05, 0.3]),
        (Sampling(0.5), [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
        (Sampling(1.0, top_k=2), [0, 0.625, 0, 0.375]),
        (Sampling(1.0, top_k=9), [0.15, 0.5, 0.05, 0.3]),
        (Sampling(1.0, top_p=0.7), [0, 0.625, 0, 0.375]),
        (Sampling(1.0, top_p=0.81), [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        (Sampling(1.0, top_p=1e-6), [0, 1, 0, 0]),
        (Sampling(1.0, top_k=2, top_p=0.6), [0, 1, 0, 0]),
        (Sampling(1e-320), [0, 1, 0, 0]),
    ],
    ids=[
        "all",
        "temperature squares",
        "top-k",
        "top-k beyond the vocabulary",
        "top-p keeps the token that crosses it",
        "top-p between two tokens",
        "top-p is never empty",
        "top-p is of what top-k left",
        "almost no temperature",
    ],
)
def test_filtered_probabilities(sampling: Sampling, expected: list[float]) -> None:
    np.testing.assert_allclose(filtered_probabilities(LOGITS, sampling), expected, atol=1e-6)


def test_draws_follow_the_probabilities() -> None:
    sampler, count = Sampler(Sampling(1.0, seed=0)), 20_000
    drawn = np.bincount([sampler(LOGITS) for _ in range(count)], minlength=4) / count
    np.testing.assert_allclose(drawn, PROBABILITIES, atol=4 * 0.5 / np.sqrt(count))  # four standard deviations


def test_no_temperature_takes_the_most_likely() -> None:
    assert Sampler(Sampling())(LOGITS) == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_a_failed_check(bad: float, temperature: float) -> None:
    with pytest.raises(CheckFailed, match="not finite"):
        Sampler(Sampling(temperature))(np.array([0.0, bad], dtype=np.float32))
