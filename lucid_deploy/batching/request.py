"""Requests to a batcher, and the events that it returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from lucid_deploy.errors import LucidError
from lucid_deploy.generation.constraint import Constraint
from lucid_deploy.generation.generate import check_prompt
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes.session import Session


@dataclass(frozen=True)
class Request:
    """One prompt to continue.

    Attributes:
        sampling: How tokens are chosen. With a seed the tokens do not depend on the other requests in the batch.
        stop_at_eos: Whether an end-of-sequence token of the model ends it (that token does not come out).
        top_logprobs: None: no log-probabilities; 0: of the chosen token; n: of the n most likely tokens as well.
        cache_owner: Stored prefixes are reused among requests of one owner only.
        adapter: Name of the adapter that it runs with; None: the session's default.
        client: Whose request it is; clients that wait take turns.
        constraint: The form of the answer; it ends when nothing can follow, or at an end-of-sequence token if the text
            is complete.
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
        """Refuse a request that a session cannot run."""
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
        logprob: Natural logarithm of its probability, by the softmax of the raw logits (before temperature, top-k and
            top-p); None if not asked for.
        top: The most likely tokens and their log-probabilities, best first.
        drafted: Whether it is a draft that was verified.
        reused: Prompt tokens that a stored prefix held.
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
            left), ``cancelled``, ``refused`` (constraint and bad words leave no token, or the constraint takes too
            long) or ``error``.
        error: What went wrong, with ``error`` and ``refused``.
        reused: Prompt tokens that a stored prefix held.
    """

    request: int
    reason: str
    error: str | None = None
    reused: int = 0

    @property
    def failed(self) -> bool:
        """Whether the model failed on it; its cache is then dropped."""
        return self.reason == "error"


Event = Token | Finished
