"""How well a text is predicted, by the candidate and by PyTorch; reported without a gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.session import Array, Session

WINDOW = 512  # tokens of context at most: the text is scored window by window, each from an empty cache
PIECE = 64  # tokens whose logits are in memory at once
Score = Callable[[Array], Iterator[Array]]  # tokens (N,) to their logits, in pieces (n, vocab)


@dataclass(frozen=True)
class Perplexity:
    """Perplexities of one text, teacher-forced.

    Attributes:
        tokens: Tokens that were predicted: all of every window but its first.
        window: Tokens of a window.
        reference: PyTorch in float64.
        baseline: PyTorch in the artifact's precision.
        candidate: The artifact.
        largest: Largest difference of one token's log-probability, candidate against reference, in nats.
    """

    tokens: int
    window: int
    reference: float
    baseline: float
    candidate: float
    largest: float

    @property
    def difference(self) -> float:
        """Candidate less reference."""
        return self.candidate - self.reference


def windows(ids: Array, limit: int) -> list[Array]:
    """Cut a text into windows of at most ``WINDOW`` tokens and the model's context ``limit``; the rest counts too.

    Raises:
        LucidError: Fewer than two tokens.
    """
    if len(ids) < 2:
        raise LucidError(f"The text for the perplexity has {len(ids)} tokens; it takes at least 2.")
    size = min(WINDOW, limit)
    pieces = [ids[start : start + size] for start in range(0, len(ids), size)]
    return [piece for piece in pieces if len(piece) > 1]


def session_logits(session: Session[Any]) -> Score:
    """Return a function giving a session's logits of every token."""

    def score(ids: Array) -> Iterator[Array]:
        cache = session.empty_cache()
        yield session.prefill(ids[None, :1], cache)[0]
        for start in range(1, len(ids), PIECE):
            yield session.prefill_all(ids[None, start : start + PIECE], cache)[0]

    return score


def surprisals(score: Score, pieces: list[Array], tick: Callable[[], None]) -> Array:
    """Return ``−log p`` of every token but each window's first, in nats, float64 ``(tokens,)``."""
    found = [np.zeros(0)]
    for ids in pieces:
        start = 0
        for logits in score(ids[:-1]):  # the last token predicts nothing that is there
            next_ids = ids[start + 1 : start + 1 + len(logits)]
            values = logits.astype(np.float64)  # (n, vocab)
            with np.errstate(invalid="ignore"):
                peak = values.max(axis=-1)
                total = peak + np.log(np.exp(values - peak[:, None]).sum(axis=-1))
            found.append(total - values[np.arange(len(values)), next_ids])
            start += len(logits)
        tick()
    return np.concatenate(found)


def perplexity(reference: Array, baseline: Array, candidate: Array, window: int) -> Perplexity:
    """Sum up what three models give for the same tokens, each ``(tokens,)`` from :func:`surprisals`."""
    with np.errstate(over="ignore", invalid="ignore"):
        largest = float(np.abs(candidate - reference).max())
        true, base, found = (float(np.exp(values.mean())) for values in (reference, baseline, candidate))
    return Perplexity(len(reference), window, true, base, found, largest)
