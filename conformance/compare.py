"""How far an output is off."""

from __future__ import annotations

import math

import numpy as np

from lucid_deploy.conformance.formulas import Array


def relative_error(found: Array, wanted: Array) -> float:
    """Return the relative error (L2) of the batch row that is farthest off; infinite for NaN or another shape.

    Args:
        found: ``(B, …)``.
        wanted: The same shape.
    """
    if found.shape != wanted.shape:
        return math.inf
    found, wanted = (x.astype(np.float64).reshape(len(x), -1) for x in (found, wanted))
    difference, size = np.linalg.norm(found - wanted, axis=1), np.linalg.norm(wanted, axis=1)
    error = np.where(difference == 0, 0.0, difference / np.maximum(size, np.finfo(np.float64).tiny))
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0.0))
