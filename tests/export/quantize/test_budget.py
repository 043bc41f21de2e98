"""Choices are within the budget, the best of all predictions, and better than all their neighbours."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.budget import BITS, Budget, predicted_best, refined

KINDS = ("q", "k", "v", "o", "up")
SIZES = {kind: (count * 0.625, count * 1.125) for kind, count in zip(KINDS, (100, 25, 25, 100, 300), strict=True)}


def budget(target: float) -> Budget:
    return Budget(SIZES, 550, target)


@pytest.mark.parametrize("target", [5.0, 5.5, 6.3, 8.0, 9.0, 32.0])
def test_the_best_prediction_within_the_budget(target: float) -> None:
    rng = np.random.default_rng(int(target * 10))
    errors = {kind: tuple(rng.uniform(0.1, 1) * scale for scale in (1, 1 / 16)) for kind in KINDS}
    found = predicted_best(budget(target), errors)
    every = [dict(zip(KINDS, bits, strict=True)) for bits in itertools.product(BITS, repeat=len(KINDS))]
    fitting = [choice for choice in every if budget(target).bits(choice) <= target]

    def lost(choice: dict[str, int]) -> float:
        return sum(errors[kind][BITS.index(bits)] ** 2 for kind, bits in choice.items())

    assert found in fitting and lost(found) == pytest.approx(min(map(lost, fitting)))
    assert budget(target).bits(dict.fromkeys(KINDS, 4)) == 5


def test_neighbours_are_measured_once_each_until_none_is_better() -> None:
    """Errors that do not add up: the best choice has none of what the prediction takes."""
    asked = []

    def measure(choice: dict[str, int]) -> float:
        asked.append(tuple(choice.values()))
        return sum((choice[kind] == 4) * weight for kind, weight in zip(KINDS, (5, 4, 1, 2, 9), strict=True))

    start = {"q": 4, "k": 4, "v": 8, "o": 8, "up": 4}
    choice, error, trials = refined(budget(6.0), start, measure, 100)
    assert choice == {"q": 8, "k": 8, "v": 4, "o": 4, "up": 4} and error == 12
    assert len(asked) == len(set(asked)) == trials
    assert all(budget(6.0).bits(dict(zip(KINDS, bits, strict=True))) <= 6 for bits in asked)
    stopped, _, trials = refined(budget(6.0), start, measure, 3)
    assert trials == 3 and budget(6.0).bits(stopped) <= 6


def test_impossible_budgets() -> None:
    budget(5.0).check()
    with pytest.raises(LucidError, match=r"--target-bits 4.9 is impossible: with 4 bits everywhere a weight takes 5,"):
        budget(4.9).check()
    many = Budget({str(kind): (1.0, 2.0) for kind in range(21)}, 100, 8)
    with pytest.raises(LucidError, match="up to 20 kinds"):
        many.check()
