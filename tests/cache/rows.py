"""Rows that are hard to round."""

from __future__ import annotations

import numpy as np


def rows_far_apart() -> np.ndarray:
    """Return rows ``(2, 3, 5, 16)``, float64, whose sizes lie up to 60 powers of ten apart; some are all zeros."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, 3, 5, 16)) * 10.0 ** rng.integers(-30, 30, (2, 3, 5, 1))
    rows[0, 0, 0] = 0
    rows[0, 0, 1] = 1e-44  # the scale would be smaller than any number
    return rows
