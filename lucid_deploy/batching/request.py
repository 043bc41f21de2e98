"""Requests to a batcher, their state while they run, and the events that it returns for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import Constraint
from lucid_deploy.generation.generate import check_prompt
from lucid_deploy.generation.prefix_store import Block
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.generation.speculation import Choice, Row
from lucid_deploy.runtimes.session import Array, Cache, Session


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    Attributes:
        sampling: How tokens are chosen. With a seed, other requests can change tokens only through rounding.
        stop_at_eos: Whether an end-of-sequence token of the model ends the answer (that token is not returned).
        top_logprobs: None: no log-probabilities; 0: of the chosen token; n: of the n most likely tokens as well.
        cache_owner: Stored prefixes are only reused among requests of the same owner.
        adapter: Name of the adapter that the request runs with; None: the session's default.
        client: Who sent the request; waiting clients get rows in turn.
        constraint: The grammar of the answer, which ends when nothing can follow, or at an end-of-sequence token if
            the text is complete.
    """

    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    stop_at_eos: bool = True
    top_logprobs: int | None = None
    cache_owner: str = ""
    constraint: Constraint | None = None
    client: str = ""
    adapter: str | None = None

    def check(self, session: Session) -> None:
        """Raise a LucidError if a session cannot run the request."""
        if self.adapter is not None:
            session.adapter_id(self.adapter)
        check_prompt(session, self.prompt_ids, self.max_new_tokens)
        vocabulary = session.config.vocab_size
        self.sampling.check(vocabulary)
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= vocabulary:
            raise LucidError(f"top_logprobs must be 0 to {vocabulary} (the vocabulary), not {self.top_logprobs}.")


@dataclass(frozen=True)
class Token:
    """A new token of a request.

    Attributes:
        request: The request's number.
        logprob: Natural logarithm of the token's probability, by the softmax of the model's logits, before penalties,
            biases, constraint, temperature and filters; None if not requested.
        top: The ``top_logprobs`` most likely tokens and their log-probabilities, the likeliest first.
        drafted: Whether the token is an accepted draft.
        reused: Number of prompt tokens taken from a stored prefix.
    """

    request: int
    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    drafted: bool = False
    reused: int = 0


@dataclass(frozen=True)
class Finished:
    """The end of a request, its last event.

    Attributes:
        request: The request's number.
        reason: ``eos`` (also when a constraint lets nothing follow), ``length`` (max_new_tokens), ``context`` (no room
            left), ``cancelled``, ``refused`` (constraint and bad words leave no token, or the constraint does not
            compile or takes too long) or ``error``.
        error: What went wrong, with ``error`` and ``refused``.
        reused: Number of prompt tokens taken from a stored prefix.
    """

    request: int
    reason: str
    error: str | None = None
    reused: int = 0

    @property
    def failed(self) -> bool:
        """Whether the request ended with ``error``; its cache is then not stored for later prompts."""
        return self.reason == "error"


Event = Token | Finished


@dataclass(kw_only=True)
class BatchRow(Row):
    """The state of a request that has started.

    Attributes:
        cache: The row's own cache while its prompt is prefilled or it is paused; None while it is in the batch.
        blocks: The stored blocks that the prompt began with.
        reused: Number of tokens in these blocks.
        pauses: How often the row was taken out of the batch to wait for its guide's mask.
        resume_at: First step in which the row may resume; earlier if no row runs.
    """

    number: int
    request: Request
    cache: Cache[Any] | None
    blocks: list[Block] = field(default_factory=list)
    reused: int = 0
    pauses: int = 0
    resume_at: int = 0

    def token(self, choice: Choice) -> Token:
        logprobs = log_probabilities(choice.logits, choice.token, self.request.top_logprobs)
        return Token(self.number, choice.token, *logprobs, drafted=choice.drafted, reused=self.reused)

    def end(self, reason: str, error: str | None = None) -> Finished:
        return Finished(self.number, reason, error, self.reused)


def log_probabilities(logits: Array, token: int, top: int | None) -> tuple[float | None, tuple[tuple[int, float], ...]]:
    """Return a token's log-probability, and the ``top`` likeliest tokens with theirs; (None, ()) if ``top`` is None."""
    if top is None:
        return None, ()
    shifted = logits.astype(np.float64) - logits.max()
    values = shifted - np.log(np.exp(shifted).sum())
    return float(values[token]), tuple((int(index), float(values[index])) for index in largest(values, top))


def largest(values: Array, count: int) -> Array:
    """Return the indices of the ``count`` largest values in descending order, equal ones by index."""
    if not 0 < count < len(values):
        return np.argsort(-values, kind="stable")[:count] if count else np.zeros(0, np.int64)
    candidates = np.flatnonzero(values >= np.partition(values, -count)[-count])  # sorting a whole vocabulary is slow
    return np.asarray(candidates[np.argsort(-values[candidates], kind="stable")[:count]])
