"""The difference between two models' scores on the same documents, with its interval by the paired bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 10_000
_SEED = 0  # of the resamples: the same scores give the same interval


@dataclass(frozen=True)
class Difference:
    """The first model's mean score less the second's."""

    value: float
    low: float  # ends of its 95 % interval
    high: float
    documents: int  # asked of both
    better: int  # documents on which the first scores higher
    worse: int  # documents on which the second does


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two models' scores on the same documents, in the same order."""
    return average_difference([(first, second)])


def average_difference(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Difference:
    """Compare two models over several tasks of equal weight; each pair has a task's scores of both.

    The ends of the interval are percentiles of the means of bootstrap samples, which draw documents anew within each
    task. If no score differs, the interval has no width.
    """
    random = np.random.default_rng(_SEED)
    tasks = [np.subtract(first, second, dtype=float) for first, second in pairs]
    means = np.mean([_resampled_means(differences, random) for differences in tasks], axis=0)  # (resamples,)
    low, high = np.quantile(means, [0.025, 0.975])
    value = float(np.mean([differences.mean() for differences in tasks]))
    every = np.concatenate(tasks)
    return Difference(value, float(low), float(high), len(every), int((every > 0).sum()), int((every < 0).sum()))


def _resampled_means(differences: Any, random: np.random.Generator) -> Any:
    values, counts = np.unique(differences, return_counts=True)
    count = len(differences)
    return random.multinomial(count, counts / count, size=RESAMPLES) @ values / count
