"""What the HTTP side asks of an engine and what it gets back. Plain data, so that it also travels between machines."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Protocol

from lucid_deploy.generation.constraint import Constraint
from lucid_deploy.generation.sampling import Sampling


@dataclass(frozen=True)
class Job:
    """One HTTP request's generations: every prompt ``n`` times.

    Attributes:
        sampling: How tokens are chosen. Its seed is that of a prompt's first generation; the next ones count up.
        top_logprobs: Alternatives reported with each token's log-probability; None: no log-probabilities.
    """

    prompts: tuple[tuple[int, ...], ...]  # token ids of each prompt
    n: int = 1  # generations of each
    max_new_tokens: int = 16  # most tokens of each generation
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0))
    stops: tuple[str, ...] = ()  # texts that end a generation and are not part of it
    stop_at_eos: bool = True  # whether an end-of-sequence token ends a generation
    top_logprobs: int | None = None
    tokens_as_ids: bool = False  # whether log-probabilities name tokens as ``token_id:N``, not by their text
    cache_owner: str = ""  # stored prefixes are reused among jobs of one owner only
    constraint: Constraint | None = None  # what each generation must be
    timed: bool = False  # whether :class:`RowTimes` are among the events
    shown_tokens: tuple[int, ...] = ()  # special tokens that are text all the same

    @property
    def rows(self) -> int:
        """Generations in all; number ``i`` continues prompt ``i // n``."""
        return len(self.prompts) * self.n


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token as text and as bytes (None if it has none of its own), and its log-probability."""

    text: str
    data: bytes | None
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of a generation with its alternatives, most likely first; ``offset`` is where its text begins."""

    chosen: TokenText
    top: tuple[TokenText, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class TextPiece:
    """One more token of generation ``row``; its text may still be held back, then ``text`` is empty."""

    row: int
    text: str
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class RowEnd:
    """The end of generation ``row``."""

    row: int  # the generation
    reason: str  # ``stop``, ``length``, or with a message ``error`` or ``invalid``
    message: str = ""  # what went wrong
    reused: int = 0  # prompt tokens that a stored prefix held


@dataclass(frozen=True, slots=True)
class RowTimes:
    """When generation ``row`` did what, as far as it is known; the latest one counts.

    Times are nanoseconds since 1970 by the clock of the engine's machine; 0: not yet.

    Attributes:
        reused: Prompt tokens that a stored prefix held.
        text_began, text_ended: The first token began to become text, and the last one had.
    """

    row: int  # the generation
    queued: int  # it was given to the engine
    prefill: int = 0  # it got a row, and its prompt began to run
    decode: int = 0  # its prompt had run
    ended: int = 0  # its last token was text
    reused: int = 0
    text_began: int = 0
    text_ended: int = 0
    text_spent: int = 0  # nanoseconds that turning tokens into text took in all


@dataclass(frozen=True, slots=True)
class Refusal:
    """The job was refused: ``queue_full`` (try again after ``retry_after`` seconds), ``invalid``, ``down``, or
    ``unsupported`` here. ``param`` is the request's field that is wrong, where one is."""

    kind: str
    message: str = ""
    retry_after: int = 1
    param: str | None = None


Event = TextPiece | RowEnd | RowTimes | Refusal


class Backend(Protocol):
    """Where jobs run: an engine in this process, or replicas elsewhere."""

    @property
    def state(self) -> str:
        """``loading``, ``ready``, ``stuck`` (a step takes longer than it may) or ``dead``."""
        ...

    def generate(self, job: Job) -> AsyncGenerator[list[Event], None]:
        """Run a job; closing the generator cancels what still runs."""
        ...

    async def solving_layers(self) -> list[dict[str, Any]] | Refusal:
        """Return the layers that solve a system: ``layer`` and ``heads``, the number of key/value heads."""
        ...

    async def solve(self, ids: list[int], layer: int, head: int) -> dict[str, Any] | Refusal:
        """Return what a layer's head solves over a text, as ``/v1/lucid/solve`` gives it."""
        ...

    def gauges(self) -> dict[str, float]:
        """Return what :mod:`lucid_deploy.serving.metrics` shows of an engine, as far as it is known here."""
        ...
