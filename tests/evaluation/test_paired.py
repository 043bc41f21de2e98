"""Paired differences: their value, and how wide their intervals are."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.evaluation.harness import average_difference, paired_difference


def test_pairing_matters() -> None:
    """Scores that go together differ less than the same scores in another order."""
    random = np.random.default_rng(0)
    first = random.random(100)
    second = first - 0.05 + 0.01 * random.random(100)
    paired = paired_difference(list(first), list(second))
    shuffled = paired_difference(list(first), list(random.permutation(second)))
    assert paired.low > 0.03 and shuffled.high - shuffled.low > 10 * (paired.high - paired.low)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(1)
    held, trials = 0, 400
    for _ in range(trials):
        both = random.random(80)
        first, second = (both < 0.7).astype(float), ((both < 0.6) | (both > 0.97)).astype(float)
        held += (found := paired_difference(list(first), list(second))).low <= 0.7 - 0.63 <= found.high
    assert held / trials > 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5


def test_an_average_over_tasks() -> None:
    """Tasks count alike, however many documents they have; the interval is that of an exact enumeration."""
    found = average_difference([([1.0, 1.0], [1.0, 0.0]), ([0.0] * 4, [0.0] * 4)])
    assert found.value == 0.25 and (found.documents, found.better, found.worse) == (6, 1, 0)
    assert (found.low, found.high) == (0.0, 0.5)  # both draws of the first task are the same in half of the cases
    many = average_difference([([1.0] * 60 + [0.0] * 40, [0.0] * 100)])
    assert (many.low, many.high) == pytest.approx((0.5, 0.69), abs=0.011)  # 2.5 % and 97.5 % of a binomial
