"""Does an error grow along the sequence?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lucid_deploy.runtimes.session import Array

SPAN = 4.0  # times the first position, counted from 1, that the last must be: the logits after a prompt show no trend
FEWEST = 8  # positions below which a trend is chance
GROWS = 0.25  # an exponent from which on an error is said to grow: it more than doubles from position 16 to 400


@dataclass(frozen=True)
class ErrorGrowth:
    """The trend of an error against position, ``error ≈ c · position^exponent``.

    Attributes:
        exponent: Least-squares slope of log error over log position, counted from 1; exact positions are left out.
        ratio: Mean of the last quarter of the positions over that of the first.
    """

    exponent: float
    ratio: float

    @property
    def grows(self) -> bool:
        """Whether both figures show growth."""
        return self.exponent > GROWS and self.ratio > 1


def growth(errors: Array, start: int = 0) -> ErrorGrowth | None:
    """Fit the trend of errors ``(T,)``; ``start`` is the position of the first.

    Returns:
        None where there are fewer than ``FEWEST`` positions, or not enough with an error that is a number above zero,
        or the last is not ``SPAN`` times the first.
    """
    usable = np.isfinite(errors) & (errors > 0)
    if usable.sum() < FEWEST or not np.isfinite(errors).all() or start + len(errors) < SPAN * (start + 1):
        return None
    x = np.log(np.arange(start + 1, start + 1 + len(errors))[usable])
    slope = np.polyfit(x, np.log(errors[usable]), 1)[0]
    quarter = len(errors) // 4
    first, last = float(errors[:quarter].mean()), float(errors[-quarter:].mean())
    return ErrorGrowth(float(slope), last / first if first else float("inf"))
