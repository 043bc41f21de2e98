"""Jobs on an engine in this process: tokens become text, and stop strings end generations."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.text_stream import AnswerText, TokenTexts
from lucid_deploy.serving.engine import Engine, EngineDownError, EngineFault, QueueFullError
from lucid_deploy.serving.jobs import Event, Job, Refusal, RowEnd, RowTimes, TextPiece, TokenLogprob, TokenText

if TYPE_CHECKING:
    from lucid_deploy.batching import Batcher, Finished, Mark, Request, Token
    from lucid_deploy.runtimes.session import Array

T = TypeVar("T")

ENDS = {"eos": "stop", "length": "length", "context": "length"}


class LocalBackend:
    """The engine of this process.

    Args:
        most_step_seconds: A step of the model that takes longer makes the state ``stuck``.
    """

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, most_step_seconds: float = math.inf) -> None:
        self.engine = engine
        self._most_step_seconds = most_step_seconds
        self._tokenizer = tokenizer
        self._token_texts = TokenTexts(tokenizer)
        self._drafted = 0  # tokens of answers

    @property
    def state(self) -> str:
        stuck = self.engine.state == "ready" and self.engine.step_seconds > self._most_step_seconds
        return "stuck" if stuck else self.engine.state

    def gauges(self) -> dict[str, float]:
        return {**self.engine.gauges(), "draft_tokens_accepted": float(self._drafted)}

    async def solving_layers(self) -> list[dict[str, Any]] | Refusal:
        from lucid_deploy.runtimes.solve_weights import solving_layers

        found = await self._called(lambda batcher: solving_layers(batcher.session))
        return found if isinstance(found, Refusal) else [{"layer": layer, "heads": n} for layer, n in found.items()]

    async def solve(self, ids: list[int], layer: int, head: int) -> dict[str, Any] | Refusal:
        from lucid_deploy.runtimes.solve_weights import PlaceError, SolveWeights, solve_weights

        def weights(batcher: Batcher) -> SolveWeights | Refusal:
            try:
                return solve_weights(batcher.session, ids, layer, head)
            except PlaceError as error:
                return Refusal("invalid", str(error), param=error.argument)

        found = await self._called(weights)
        if isinstance(found, Refusal):
            return found
        return {
            "object": "lucid.solve",
            "layer": layer,
            "head": head,
            "ids": ids,
            "tokens": [self._token_texts(token)[0] for token in ids],
            "subtracted": [_rounded(row[:i]) for i, row in enumerate(found.subtracted)],
            "diagonal": _rounded(found.diagonal),
            "coefficients": [_rounded(row[: i + 1]) for i, row in enumerate(found.coefficients)],
        }

    async def _called(self, function: Callable[[Batcher], T]) -> T | Refusal:
        try:
            return await asyncio.wrap_future(self.engine.call(function))
        except QueueFullError as error:
            return Refusal("queue_full", retry_after=error.retry_after)
        except EngineDownError as error:
            return Refusal("down", str(error))
        except LucidError as error:
            return Refusal("invalid", str(error))

    async def generate(self, job: Job) -> AsyncGenerator[list[Event], None]:
        """Run a job; closing the generator cancels what still runs."""
        rows = {row: RowText(row, job, self._tokenizer, self._token_texts) for row in range(job.rows)}
        try:
            stream = self.engine.submit(_requests(job), job.timed)
        except QueueFullError as error:
            yield [Refusal("queue_full", retry_after=error.retry_after)]
            return
        except EngineDownError as error:
            yield [Refusal("down", str(error))]
            return
        try:
            if job.timed:
                yield [row.times for row in rows.values() if row.times is not None]
            while rows:
                out: list[Event] = []
                for number, event in await stream.next():
                    if number not in rows:  # a stop string ended it
                        continue
                    self._drafted += getattr(event, "drafted", False)
                    try:
                        events, done = rows[number].take(event)
                    except LucidError as error:  # of the tokenizer
                        events, done = [RowEnd(number, "error", str(error))], True
                    out += events
                    if done:
                        del rows[number]
                        stream.cancel(number)
                if out:
                    yield out
        finally:
            stream.close()


def _rounded(row: Array) -> list[float]:
    """Return numbers with six digits, which is more than the artifact's own."""
    return [float(f"{value:.6g}") for value in row]


def _requests(job: Job) -> list[Request]:
    from lucid_deploy.batching import Request

    out = []
    for row in range(job.rows):
        seed = None if job.sampling.seed is None else job.sampling.seed + row % job.n
        sampling = replace(job.sampling, seed=seed)
        prompt = list(job.prompts[row // job.n])
        out.append(
            Request(
                prompt,
                job.max_new_tokens,
                sampling,
                job.stop_at_eos,
                job.top_logprobs,
                job.cache_owner,
                job.constraint,
            )
        )
    return out


class RowText:
    """One generation: its text so far and the log-probabilities that wait for their text.

    Args:
        token_texts: Of the same tokenizer.
    """

    def __init__(self, row: int, job: Job, tokenizer: TextTokenizer, token_texts: TokenTexts) -> None:
        self._row = row
        self._text = AnswerText(tokenizer, job.stops, job.shown_tokens)
        self._token_texts = token_texts
        self._wants_logprobs = job.top_logprobs is not None
        self._as_ids = job.tokens_as_ids
        self._waiting: list[TokenLogprob] = []
        self._reused = 0
        self.times = RowTimes(row, queued=time.time_ns()) if job.timed else None

    def take(self, event: Mark | Token | Finished | EngineFault) -> tuple[list[Event], bool]:
        """Return what an event of the engine means to the client, and whether the generation is over."""
        from lucid_deploy.batching import Mark

        began = time.time_ns()
        events, done = self._take(event)
        if self.times is None:
            return events, done
        if isinstance(event, Mark):
            prefill = event.phase == "prefill"
            times = {"prefill": event.at, "reused": event.reused} if prefill else {"decode": event.at}
            self.times = replace(self.times, **times)
            return [self.times], False
        now = time.time_ns()
        self.times = replace(
            self.times,
            ended=now if done else 0,
            text_began=self.times.text_began or began,
            text_ended=now,
            text_spent=self.times.text_spent + now - began,
        )
        return ([self.times, *events] if done else events), done

    def _take(self, event: Mark | Token | Finished | EngineFault) -> tuple[list[Event], bool]:
        from lucid_deploy.batching import Mark, Token

        if isinstance(event, Mark):
            self._reused += event.reused
            return [], False
        if isinstance(event, EngineFault):
            reason = "invalid" if event.kind == "invalid" else "error"
            return [RowEnd(self._row, reason, event.message)], True
        if isinstance(event, Token):
            return self._token(event)
        if event.reason == "refused":
            return [RowEnd(self._row, "invalid", event.error or "")], True
        if event.reason not in ENDS:
            return [RowEnd(self._row, "error", event.error or f"The generation was {event.reason}.")], True
        text = self._text.finish()
        piece = self._piece(text, 0, everything=not self._text.stopped)
        end = self._end("stop" if self._text.stopped else ENDS[event.reason])
        return ([piece, end] if piece.text or piece.logprobs else [end]), True

    def _token(self, event: Token) -> tuple[list[Event], bool]:
        if self._wants_logprobs:
            self._waiting.append(self._logprob(event))
        piece = self._piece(self._text.push(event.token), 1)
        return ([piece, self._end("stop")], True) if self._text.stopped else ([piece], False)

    def _end(self, reason: str) -> RowEnd:
        return RowEnd(self._row, reason, reused=self._reused)

    def _piece(self, text: str, tokens: int, everything: bool = False) -> TextPiece:
        """Return a piece with the log-probabilities of the tokens whose text begins in what was given out."""
        ready = [item for item in self._waiting if everything or item.offset < self._text.shown]
        self._waiting = self._waiting[len(ready) :]
        return TextPiece(self._row, text, tokens, tuple(ready))

    def _logprob(self, event: Token) -> TokenLogprob:
        assert event.logprob is not None  # it was asked for
        top = tuple(self._named(token, logprob) for token, logprob in event.top or ())
        return TokenLogprob(self._named(event.token, event.logprob), top, self._text.decoded)

    def _named(self, token: int, logprob: float) -> TokenText:
        text, data = self._token_texts(token)
        return TokenText(f"token_id:{token}" if self._as_ids else text, data, logprob)
