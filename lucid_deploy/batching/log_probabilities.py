"""Log-probabilities of a token and of the most likely ones, from the logits of a row."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def log_probabilities(logits: Array, token: int, top: int | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """Return the log-probability of a token, and the most likely tokens with theirs.

    Args:
        logits: Float ``(vocab,)``.
        token: Its id.
        top: How many of the most likely tokens; None: nothing is wanted, not even that of the token.
    """
    if top is None:
        return None, ()
    shifted = logits.astype(np.float64) - logits.max()
    values = shifted - np.log(np.exp(shifted).sum())
    return float(values[token]), tuple((int(index), float(values[index])) for index in largest(values, top))


def largest(values: Array, count: int) -> Array:
    """Return where the largest values are, the largest first; of equal ones the first comes first.

    Only as many are sorted as can be among them: a sort of a whole vocabulary took most of a token's log-probabilities.
    """
    if not 0 < count < len(values):
        return np.argsort(-values, kind="stable")[:count] if count else np.zeros(0, np.int64)
    candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])
    return np.asarray(candidates[np.argsort(-values[candidates], kind="stable")[:count]])
