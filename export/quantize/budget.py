"""Choose bits under a budget: which kinds of weights have 8 bits, so that the error of the logits is least."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lucid_deploy.errors import LucidError

BITS = (4, 8)
_MOST_KINDS = 20  # 2^20 choices are looked at in a second
Choice = dict[str, int]  # bits by kind


@dataclass(frozen=True)
class Budget:
    """What may be spent.

    Attributes:
        sizes: Bytes of each kind with each of :data:`BITS`, scales included.
        weights: How many weights all kinds have together.
        target: Bits a weight at most, on average.
    """

    sizes: dict[str, tuple[float, ...]]
    weights: int
    target: float

    def bits(self, choice: Choice) -> float:
        """Return the bits a weight of a choice."""
        return 8 * sum(self.sizes[kind][BITS.index(bits)] for kind, bits in choice.items()) / self.weights

    def check(self) -> None:
        """See that something fits."""
        if len(self.sizes) > _MOST_KINDS:
            raise LucidError(
                f"--method auto is for models of up to {_MOST_KINDS} kinds of weights; this one has {len(self.sizes)}."
            )
        least, most = (self.bits(dict.fromkeys(self.sizes, bits)) for bits in BITS)
        if least > self.target:
            raise LucidError(
                f"--target-bits {self.target:g} is impossible: with {BITS[0]} bits everywhere a weight takes "
                f"{least:.4g}, scales included, and with {BITS[1]} bits {most:.4g}. Larger blocks (--block-size) and "
                "--dtype float16 make scales smaller."
            )


def predicted_best(budget: Budget, errors: dict[str, tuple[float, ...]]) -> Choice:
    """Return the choice within the budget with the least sum of squared errors; all choices are looked at.

    Args:
        budget: What may be spent.
        errors: Of the logits, when one kind alone is rounded, with each of :data:`BITS`.
    """
    kinds = list(budget.sizes)
    choices = np.array(list(itertools.product(range(len(BITS)), repeat=len(kinds))))  # (choices, kinds)
    places = np.arange(len(kinds))
    sizes = np.array([budget.sizes[kind] for kind in kinds])[places, choices].sum(axis=1)
    lost = (np.array([errors[kind] for kind in kinds])[places, choices] ** 2).sum(axis=1)
    best = choices[np.where(8 * sizes / budget.weights <= budget.target, lost, np.inf).argmin()]
    return {kind: BITS[place] for kind, place in zip(kinds, best, strict=True)}


def refined(
    budget: Budget, start: Choice, measure: Callable[[Choice], float], trials: int
) -> tuple[Choice, float, int]:
    """Improve a choice by measuring its neighbours: one kind with other bits, or two kinds that change places.

    Squared errors do not quite add up: later layers make up for what earlier ones lose. So all neighbours are measured,
    the best one is taken, and so on until none is better.

    Args:
        budget: What may be spent.
        start: Where to begin.
        measure: Gives the error of a choice; is asked once for each.
        trials: After how many measurements to stop.

    Returns:
        The choice, its error, and how many choices were measured.
    """
    known: dict[tuple[int, ...], float] = {}

    def error(choice: Choice) -> float:
        key = tuple(choice.values())
        if key not in known:
            known[key] = measure(choice) if len(known) < trials else float("inf")
        return known[key]

    best = start
    while True:
        error(best)
        near = [choice for choice in _neighbours(best) if budget.bits(choice) <= budget.target]
        better = min(near, key=error, default=best)
        if not error(better) < error(best):
            return best, error(best), sum(value < float("inf") for value in known.values())
        best = better


def _neighbours(choice: Choice) -> Iterator[Choice]:
    other = {bits: BITS[1 - place] for place, bits in enumerate(BITS)}
    for kind, bits in choice.items():
        yield {**choice, kind: other[bits]}
    for first, second in itertools.combinations(choice, 2):
        if choice[first] != choice[second]:
            yield {**choice, first: choice[second], second: choice[first]}
