"""Paired differences against published figures and exact enumeration."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.evaluation.paired import average_difference, mcnemar, newcombe, paired_difference


def test_newcombes_own_table() -> None:
    """Table II of Newcombe (1998), method 10, for 36, 12, 2 and 0 of 50."""
    low, high = newcombe(36, 12, 2, 0)
    assert (round(low, 4), round(high, 4)) == (0.0569, 0.3404)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 0), (1, 9), (10, 15), (200, 260)])
def test_mcnemar_is_the_binomial_test(better: int, worse: int) -> None:
    from scipy.stats import binomtest

    expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected)


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
    pairs = [([1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0]), ([0.0] * 4, [0.0] * 4)]
    one, other = (paired_difference(*pair) for pair in pairs)
    found = average_difference(pairs)
    assert found.value == 0.125 and found.method == "mover"
    assert found.value - found.low == pytest.approx(np.hypot(one.value - one.low, other.value - other.low) / 2)
    assert (found.documents, found.better, found.worse) == (8, 1, 0)
