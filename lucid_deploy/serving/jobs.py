"""Jobs, and the backend that runs them in this process."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.batching import Finished, Mark, Request, Token
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.generation.text_stream import AnswerPieces, AnswerText, TextPiece, TokenTexts
from lucid_deploy.runtimes.session import Array, Session
from lucid_deploy.runtimes.solve_weights import solve_weights
from lucid_deploy.serving.engine import Engine, EngineOptions, Refusal, RefusedError, make_engine

ENDS = {"eos": "stop", "length": "length", "context": "length"}
UNPROMPTED = Request([], 16, Sampling(temperature=1.0))
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """One HTTP request's generations: every prompt ``n`` times."""

    prompts: tuple[tuple[int, ...], ...]  # token ids of each prompt
    request: Request = UNPROMPTED  # what all have in common; its seed is that of each prompt's first generation
    n: int = 1  # generations of each prompt
    stops: tuple[str, ...] = ()  # texts that end a generation and are not part of it
    tokens_as_ids: bool = False  # whether log-probabilities name tokens as ``token_id:N``, not by their text
    shown_tokens: tuple[int, ...] = ()  # special tokens that are text all the same

    @property
    def rows(self) -> int:
        """Number of generations, prompts times ``n``; generation ``i`` continues prompt ``i // n``."""
        return len(self.prompts) * self.n


@dataclass(frozen=True, slots=True)
class RowEnd:
    """The end of generation ``row``."""

    row: int
    reason: str  # ``stop``, ``length``, or with a message ``error`` or ``invalid``
    message: str = ""  # what went wrong
    reused: int = 0  # prompt tokens that a stored prefix held


@dataclass(frozen=True, slots=True)
class RowMark:
    """Generation ``row`` began a phase."""

    row: int
    phase: str  # ``queue``, ``prefill`` or ``decode``
    at: int  # nanoseconds since 1970
    reused: int = 0  # prompt tokens that a stored prefix held, since the mark before


Event = TextPiece | RowEnd | RowMark | Refusal


def make_backend(options: EngineOptions) -> LocalBackend:
    """Return a backend in this process, not started."""
    tokenizer = TextTokenizer(Path(options.directory))
    return LocalBackend(make_engine(options), tokenizer, options.most_step_seconds)


class LocalBackend:
    """The engine of this process. Ray's has the same methods.

    Attributes:
        state: ``loading``, ``ready``, ``stuck`` (a step takes longer than ``most_step_seconds``) or ``dead``.
    """

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, most_step_seconds: float = math.inf) -> None:
        self.engine = engine
        self._most_step_seconds = most_step_seconds
        self._tokenizer, self._token_texts = tokenizer, TokenTexts(tokenizer)
        self._drafted = 0  # tokens of answers

    @property
    def state(self) -> str:
        stuck = self.engine.state == "ready" and self.engine.step_seconds > self._most_step_seconds
        return "stuck" if stuck else self.engine.state

    def gauges(self) -> dict[str, float]:
        """Return the engine's state by the names in :mod:`lucid_deploy.serving.metrics`, as far as it is known."""
        return {**self.engine.gauges(), "draft_tokens_accepted": float(self._drafted)}

    async def solve(self, ids: list[int], layer: int, head: int, adapter: str | None = None) -> dict[str, Any]:
        """Return what a layer's head solves over a text, as ``/v1/lucid/solve`` gives it; or raise a RefusedError."""
        found = await self.call(lambda session: solve_weights(session, ids, layer, head, adapter))
        return {
            "object": "lucid.solve",
            "layer": layer,
            "head": head,
            "ids": ids,
            "tokens": [self._token_texts(token)[0] for token in ids],
            "subtracted": [row[:i].tolist() for i, row in enumerate(_rounded(found.subtracted))],
            "diagonal": _rounded(found.diagonal).tolist(),
            "coefficients": [row[: i + 1].tolist() for i, row in enumerate(_rounded(found.coefficients))],
        }

    async def call(self, function: Callable[[Session[Any]], T]) -> T:
        """Call a function of the model's session between two steps; raise a RefusedError for what it refuses."""
        try:
            return await asyncio.wrap_future(self.engine.call(lambda batcher: function(batcher.session)))
        except LucidError as error:
            raise RefusedError(Refusal("invalid", str(error), param=getattr(error, "argument", None))) from error

    async def generate(self, job: Job) -> AsyncGenerator[list[Event], None]:
        """Run a job; closing the generator cancels what still runs."""
        rows = {row: RowText(row, job, self._tokenizer, self._token_texts) for row in range(job.rows)}
        stream = self.engine.submit(requests_of(job))
        try:
            yield [RowMark(row, "queue", time.time_ns()) for row in rows]
            while rows:
                out: list[Event] = []
                for number, event in await stream.next():
                    if number not in rows:  # a stop string ended it
                        continue
                    self._drafted += getattr(event, "drafted", False)
                    try:
                        out += rows[number].take(event)
                    except LucidError as error:  # of the tokenizer
                        out.append(RowEnd(number, "error", str(error)))
                    if isinstance(out[-1], RowEnd):
                        del rows[number]
                        stream.cancel(number)
                if out:
                    yield out
        finally:
            stream.close()


def _rounded(values: Array) -> Array:
    """Round to six digits, which is more than the artifact's own; in numpy, as the event loop waits for it."""
    first = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros_like(values)))
    scale = 10.0 ** np.clip(5 - first, -300, 300)
    rounded: Array = np.round(values * scale) / scale
    return rounded


def requests_of(job: Job) -> list[Request]:
    """Return a request for each generation of a job."""
    common, seed = job.request, job.request.sampling.seed
    samplings = [replace(common.sampling, seed=None if seed is None else seed + i) for i in range(job.n)]
    return [replace(common, prompt_ids=list(ids), sampling=each) for ids in job.prompts for each in samplings]


class RowText:
    """The events of one generation for its client: tokens as text, the beginnings of its phases, and its end."""

    def __init__(self, row: int, job: Job, tokenizer: TextTokenizer, token_texts: TokenTexts) -> None:
        text = AnswerText(tokenizer, job.stops, job.shown_tokens)
        self._pieces = AnswerPieces(row, text, token_texts, job.request.top_logprobs is not None, job.tokens_as_ids)
        self._row, self._reused = row, 0

    def take(self, event: Mark | Token | Finished | Refusal) -> list[Event]:
        """Return what an event of the engine means to the client; a RowEnd is the last."""
        if isinstance(event, Mark):
            self._reused += event.reused
            return [RowMark(self._row, event.phase, event.at, event.reused)]
        if isinstance(event, Refusal):
            return [RowEnd(self._row, "invalid" if event.kind == "invalid" else "error", event.message)]
        if isinstance(event, Token):
            piece, reason = self._pieces.push(event.token, event.logprob, event.top), ""
        elif event.reason in ENDS:
            piece, reason = self._pieces.finish(), ENDS[event.reason]
        else:
            kind = "invalid" if event.reason == "refused" else "error"
            return [RowEnd(self._row, kind, event.error or f"The generation was {event.reason}.")]
        reason = "stop" if self._pieces.stopped else reason
        pieces: list[Event] = [piece] if piece.tokens or piece.text or piece.logprobs else []
        return [*pieces, RowEnd(self._row, reason, reused=self._reused)] if reason else pieces
