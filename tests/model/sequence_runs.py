"""Two texts fed to a session in every way, and held against the logits of a model that has no cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid_deploy.runtimes.session import Session

LENGTH = 60


def token_ids(vocabulary: int = 61) -> np.ndarray:
    """Return two texts, int64 ``(2, LENGTH)``; the second repeats a token."""
    found = np.random.default_rng(0).integers(1, vocabulary, (2, LENGTH))
    found[1, 15:40] = 7
    return found


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """Return the relative L2 error."""
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def check_sequences(session: Session[Any], exact: np.ndarray, gate: float) -> None:
    """One-shot, chunked and decoded logits of the last token, and a batch with padding left, right and between."""
    tokens = token_ids(session.config.vocab_size)
    for chunks in ((LENGTH,), (1, 4, 23, 12), (7,)):
        cache, start, logits = session.empty_cache(2), 0, np.zeros(0)
        for size in chunks:
            logits = session.prefill(tokens[:, start : start + size], cache)
            start += size
        for position in range(start, LENGTH):
            logits = session.decode(tokens[:, position : position + 1], cache)
        assert relative_error(logits[:, -1], exact[:, -1]) <= gate, chunks
    half = LENGTH // 2
    places = [np.arange(half) + 9, np.arange(half), np.r_[np.arange(5) + 1, np.arange(half - 5) + 9]]
    padded, mask = np.zeros((3, half + 9), np.int64), np.zeros((3, half + 9), bool)
    for row, columns in enumerate(places):
        padded[row, columns], mask[row, columns] = tokens[1, :half], True
    cache = session.empty_cache(3)
    session.prefill(padded[:, :20], cache, mask[:, :20])
    logits = session.prefill(padded[:, 20:], cache, mask[:, 20:])
    assert relative_error(logits[:, -1], np.repeat(exact[1:, half - 1], 3, 0)) <= gate
    for position in range(half, LENGTH):
        logits = session.decode(np.repeat(tokens[1:, position : position + 1], 3, 0), cache)
    assert relative_error(logits[:, -1], np.repeat(exact[1:, -1], 3, 0)) <= gate
