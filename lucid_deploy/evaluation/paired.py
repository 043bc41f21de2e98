"""Confidence intervals of scores, and of the difference between two models on the same documents."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
_SEED = 0  # of the resamples: the same scores give the same interval
_Z = statistics.NormalDist().inv_cdf(0.975)  # 95 % lie within


@dataclass(frozen=True)
class Difference:
    """The first model's mean score less the second's."""

    value: float
    low: float  # ends of its 95 % interval
    high: float
    method: str  # "newcombe" for scores that are 0 or 1, else "bootstrap"; "mover" for a mean over tasks
    documents: int  # asked of both
    better: int  # documents on which the first scores higher
    worse: int  # documents on which the second does
    p: float | None  # McNemar's exact test of "neither is better"; None unless scores are 0 or 1


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion after Wilson (1927), which holds near 0 and 1 too."""
    share, z2 = right / count, _Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return (0.0 if right == 0 else middle - half), (1.0 if right == count else middle + half)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two models' scores on the same documents, in the same order.

    Scores that are 0 or 1 get Newcombe's interval, which has a width even where no score differs, and McNemar's exact
    test. Others get the percentile interval of the paired bootstrap.
    """
    mine, theirs = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    better, worse = int((mine > theirs).sum()), int((mine < theirs).sum())
    value, count = float((mine - theirs).mean()), len(mine)
    if set(np.unique(np.concatenate([mine, theirs]))) <= {0.0, 1.0}:
        both = int((mine * theirs).sum())
        low, high = newcombe(both, better, worse, count - both - better - worse)
        return Difference(value, low, high, "newcombe", count, better, worse, mcnemar(better, worse))
    low, high = bootstrap(mine - theirs)
    return Difference(value, low, high, "bootstrap", count, better, worse, None)


def average_difference(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Difference:
    """Compare two models over several tasks of equal weight; each pair has a task's scores of both.

    The interval is put together from the tasks' own (MOVER: Zou and Donner, Statistics in Medicine 27:1693-1702, 2008).
    """
    parts = [paired_difference(mine, theirs) for mine, theirs in pairs]
    value = sum(part.value for part in parts) / len(parts)
    down = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    up = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    documents, better, worse = (
        sum(counts) for counts in zip(*((part.documents, part.better, part.worse) for part in parts), strict=True)
    )
    return Difference(value, value - down, value + up, "mover", documents, better, worse, None)


def mcnemar(better: int, worse: int) -> float:
    """Return the two-sided p value of McNemar's exact test, from the documents that only one model has right."""
    count = better + worse
    return min(1.0, 2 * sum(math.comb(count, k) for k in range(min(better, worse) + 1)) / 2**count)


def newcombe(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two paired proportions: method 10 of Newcombe (1998).

    Statistics in Medicine 17:2635-2650. The counts are of documents that both models have right, that only the first
    or only the second has right, and that none has right.
    """
    count = both + first + second + neither
    share1, share2 = (both + first) / count, (both + second) / count
    (low1, high1), (low2, high2) = wilson(both + first, count), wilson(both + second, count)
    phi = _correlation(both, first, second, neither)
    below = (share1 - low1) ** 2 + (high2 - share2) ** 2 - 2 * phi * (share1 - low1) * (high2 - share2)
    above = (high1 - share1) ** 2 + (share2 - low2) ** 2 - 2 * phi * (high1 - share1) * (share2 - low2)
    difference = share1 - share2
    return difference - math.sqrt(max(0.0, below)), difference + math.sqrt(max(0.0, above))


def _correlation(both: int, first: int, second: int, neither: int) -> float:
    """Return the correlation of two models' answers; a positive one with a continuity correction towards 0."""
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = float(both * neither - first * second)
    if cross > 0:
        cross = max(0.0, cross - (both + first + second + neither) / 2)
    return cross / math.sqrt(product) if product else 0.0


def bootstrap(differences: Any) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean of differences ``(documents,)``."""
    count = len(differences)
    random = np.random.default_rng(_SEED)
    drawn = random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)  # (resamples, documents)
    low, high = np.quantile(drawn @ differences / count, [0.025, 0.975])
    return float(low), float(high)
