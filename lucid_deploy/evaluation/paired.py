"""Differences between two models on the same documents, with how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lucid_deploy.evaluation.report import wilson

RESAMPLES = 10_000
_SEED = 0  # of the resamples: the same scores give the same interval


@dataclass(frozen=True)
class Difference:
    """The first model's mean score less the second's.

    Attributes:
        value: The difference.
        low: Of its 95 % interval.
        high: Of its 95 % interval.
        method: ``newcombe`` for scores that are 0 or 1, else ``bootstrap``; ``mover`` for a mean over tasks.
        documents: How many both were asked.
        better: Documents on which the first scores higher.
        worse: Documents on which the second does.
        p: McNemar's exact test of "neither is better"; None where scores are not 0 or 1.
    """

    value: float
    low: float
    high: float
    method: str
    documents: int
    better: int
    worse: int
    p: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two models' scores on the same documents.

    Scores that are 0 or 1 get Newcombe's interval and McNemar's exact test; the interval has a width even where no
    score differs. Others get the percentile interval of the paired bootstrap.

    Args:
        first: A score for each document, at least one.
        second: The other model's, in the same order.
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
    """Compare two models over several tasks of equal weight.

    The interval is put together from the tasks' own (MOVER: G. Y. Zou and A. Donner, Construction of confidence limits
    about effect measures, Statistics in Medicine 27:1693-1702, 2008), so it has a width where those have one.

    Args:
        pairs: For each task the scores of both, in the same order.
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
    """Return the two-sided p value of McNemar's exact test: as many heads in that many throws of a fair coin.

    Args:
        better: Documents that only the first model has right.
        worse: Documents that only the second has right.
    """
    count, least = better + worse, min(better, worse)
    tail = sum(math.comb(count, k) for k in range(least + 1)) / 2**count
    return min(1.0, 2 * tail)


def newcombe(both: int, first: int, second: int, neither: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two paired proportions: method 10 of Newcombe (1998).

    R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
    Statistics in Medicine 17:2635-2650.

    Args:
        both: Documents that both models have right.
        first: That only the first has right.
        second: That only the second has right.
        neither: That none has right.
    """
    count = both + first + second + neither
    one, other = both + first, both + second
    (low1, high1), (low2, high2) = wilson(one, count), wilson(other, count)
    share1, share2 = one / count, other / count
    phi = _correlation(both, first, second, neither)
    below, above = share1 - low1, high2 - share2
    down = math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    below, above = high1 - share1, share2 - low2
    up = math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    return share1 - share2 - down, share1 - share2 + up


def _correlation(both: int, first: int, second: int, neither: int) -> float:
    """Return the correlation of two models' answers, nearer to 0 by a continuity correction if it is positive."""
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    if product == 0:
        return 0.0
    cross = both * neither - first * second
    if cross > 0:
        cross = max(0, cross - (both + first + second + neither) / 2)  # type: ignore[assignment]
    return cross / math.sqrt(product)


def bootstrap(differences: Any) -> tuple[float, float]:
    """Return the 95 % percentile interval of a mean: documents are drawn again from those that there are.

    Args:
        differences: Of the scores, ``(documents,)``.
    """
    count = len(differences)
    random = np.random.default_rng(_SEED)
    drawn = random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)  # (resamples, documents)
    low, high = np.quantile(drawn @ differences / count, [0.025, 0.975])
    return float(low), float(high)
