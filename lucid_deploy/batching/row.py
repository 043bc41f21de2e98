"""A running request: choose its tokens from logits, with or without drafts, until it ends."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lucid_deploy.batching.request import Event, Finished, Request, Token
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.drafting import MOST_DRAFTS, Drafter
from lucid_deploy.generation.guide import Guide
from lucid_deploy.generation.prefix_store import Block
from lucid_deploy.generation.sampling import NoTokenLeft, Sampler
from lucid_deploy.generation.speculation import (
    DraftCounts,
    is_near_tie,
    near_share,
    propose_or_drop,
)
from lucid_deploy.runtimes.session import STEP_TOKENS, Array, Cache, Session


@dataclass
class Row:
    """A request with a row of the batch.

    Attributes:
        cache: Its own cache while its prompt runs or it is paused; None while it is among the running rows.
        ids: Tokens in its cache.
        blocks: The stored blocks that its prompt began with.
        reused: How many tokens these hold.
        next: The token to run next.
        count: New tokens so far.
        verified: Whether a step with drafts, its own or of a row beside it, wrote into its cache.
        pending: Logits ``(vocab,)`` that wait for the guide's mask; None: nothing waits.
        pauses: How often it has waited so.
        resume_at: Number of the step at which it may resume.
    """

    number: int
    request: Request
    choose: Sampler
    guide: Guide | None
    cache: Cache[Any] | None
    ids: list[int] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    reused: int = 0
    drafter: Drafter | None = None
    next: int = 0
    count: int = 0
    verified: bool = False
    pending: Array | None = None
    pauses: int = 0
    resume_at: int = 0

    @property
    def left(self) -> int:
        """New tokens that may still come."""
        return self.request.max_new_tokens - self.count

    def end(self, reason: str, error: str | None = None) -> Finished:
        return Finished(self.number, reason, error, self.reused)


class Chooser:
    """Chooses the tokens of rows, and appends events to lists.

    Attributes:
        tokens: Chosen so far, over all rows.
        deadline: Until when a choice may wait for the mask of a constraint, by :func:`time.monotonic`.
    """

    def __init__(self, session: Session[Any], counts: DraftCounts) -> None:
        self._session, self._counts = session, counts
        self._near = near_share(session.dtype, session.cache_dtype, session.rounded_inputs)
        self.tokens = 0
        self.deadline = 0.0

    def follow(self, row: Row, drafts: list[int], logits: Array, events: list[Event]) -> tuple[int, Finished | None]:
        """Choose a row's tokens for as long as its drafts are right.

        Args:
            drafts: The tokens that ran after its next token.
            logits: After that token and after each draft, ``(1 + drafts, vocab)``.

        Returns:
            How many of the tokens that ran are valid, and the end if the row ends.
        """
        row.verified |= bool(drafts)
        right = 0
        while True:
            row.ids.append(row.next)
            draft = drafts[right] if right < len(drafts) else None
            end = self.choose(row, logits[right], events, draft)
            if end is not None or row.pending is not None or row.next != draft:
                break
            right += 1
        self._counts.proposed += len(drafts)
        self._counts.accepted += right
        if drafts and row.drafter is not None:
            row.drafter.learn(len(drafts), right)
        return right + 1, end

    def choose(self, row: Row, logits: Array, events: list[Event], draft: int | None = None) -> Finished | None:
        """Choose a row's next token; return the end if the row ends with it.

        If the mask of its constraint is not ready in time, nothing is chosen and the logits wait in ``pending``.
        """
        row.pending = None
        if row.guide is not None and not row.guide.wait(max(0.0, self.deadline - time.monotonic())):
            row.pending = logits.copy()
            return None
        try:
            return self._choose(row, logits, events, draft)
        except NoTokenLeft as error:
            return row.end("refused", str(error))
        except LucidError as error:
            return row.end("error", str(error))

    def _choose(self, row: Row, logits: Array, events: list[Event], draft: int | None) -> Finished | None:
        allowed = None if row.guide is None else row.guide.allowed()
        if row.guide is not None and allowed is None:  # the text is complete
            return row.end("eos")
        choose, request = row.choose, row.request
        token = choose(logits, allowed)
        if row.verified and not request.sampling.temperature:
            self._counts.near_ties += is_near_tie(choose.chosen_from, logits, self._near, choose.slopes)
        if request.stop_at_eos and token in self._session.config.eos_token_ids:
            return row.end("eos")
        row.next, row.count = token, row.count + 1
        if row.guide is not None:
            row.guide.advance(token)  # its mask is computed while the model runs
        if row.drafter is not None:
            row.drafter.add([token])
        self.tokens += 1
        logprobs = log_probabilities(logits, token, request.top_logprobs)
        events.append(Token(row.number, token, *logprobs, drafted=token == draft, reused=row.reused))
        if row.count == request.max_new_tokens:
            complete = row.guide is not None and row.guide.complete
            return row.end("eos" if complete else "length")
        limit = self._session.context_limit
        return row.end("context") if limit is not None and len(row.ids) >= limit else None


def propose(rows: Mapping[int, Row], context_limit: int | None, counts: DraftCounts) -> dict[int, list[int]]:
    """Return drafts of each running row, none for many; a step runs as many columns as the longest needs.

    Rows of a growing cache end in the same column, so the longest row decides what the context has room for.
    """
    most = min(MOST_DRAFTS, STEP_TOKENS // len(rows) - 1)
    if context_limit is not None:
        most = min(most, context_limit - max(len(row.ids) for row in rows.values()) - 1)
    return {number: _propose(row, max(min(most, row.left - 1), 0), counts) for number, row in rows.items()}


def _propose(row: Row, most: int, counts: DraftCounts) -> list[int]:
    drafts = None if row.drafter is None else propose_or_drop(row.drafter, most, counts)
    if drafts is None:
        row.drafter = None
    return drafts or []


def log_probabilities(logits: Array, token: int, top: int | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """Return the log-probability of a token, and the most likely tokens with theirs; nothing where ``top`` is None."""
    if top is None:
        return None, ()
    shifted = logits.astype(np.float64) - logits.max()
    values = shifted - np.log(np.exp(shifted).sum())
    return float(values[token]), tuple((int(index), float(values[index])) for index in largest(values, top))


def largest(values: Array, count: int) -> Array:
    """Return the indices of the largest values, the largest first; of equal ones the first comes first."""
    if not 0 < count < len(values):
        return np.argsort(-values, kind="stable")[:count] if count else np.zeros(0, np.int64)
    candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])  # sorting a whole vocabulary is slow
    return np.asarray(candidates[np.argsort(-values[candidates], kind="stable")[:count]])
