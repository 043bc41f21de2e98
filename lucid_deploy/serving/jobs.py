"""Jobs (one for each HTTP request), and the backend that runs them in this process."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from pathlib import Path

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.batching import Finished, Request, Token
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.generation.text_stream import AnswerText, TextPiece, TokenLogprob, TokenText, TokenTexts
from lucid_deploy.serving.engine import Engine, EngineOptions, make_engine
from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.tool_formats import ToolFormat

ENDS = {"eos": "stop", "length": "length", "context": "length"}  # our finish reasons → OpenAI's
UNPROMPTED = Request([], 16, Sampling(temperature=1.0))  # Job.prompts has the prompts


@dataclass(frozen=True)
class Job:
    """One HTTP request: ``n`` generations for each prompt, and how to answer."""

    prompts: tuple[tuple[int, ...], ...]  # token ids of each prompt
    request: Request = UNPROMPTED  # what all generations share; each prompt's first generation has its seed
    n: int = 1  # generations of each prompt
    stops: tuple[str, ...] = ()  # texts that end a generation and are not part of it
    tokens_as_ids: bool = False  # whether log-probabilities name tokens as ``token_id:N``, not by their text
    shown_tokens: tuple[int, ...] = ()  # special tokens whose text is part of the answer
    stream: bool = False  # whether tokens are sent as they are generated
    include_usage: bool = False  # whether a stream ends with token counts
    chat: bool = False  # True for chats and ``/v1/responses``, False for completions
    cache_salt: str = ""  # chosen by the client; stored prefixes are shared under the same salt only
    tools: ToolFormat | None = None  # format of tool calls in the answer; None: it may not call tools
    response: dict[str, bytes] | None = None  # fields of a ``/v1/responses`` request that the answer repeats, as JSON

    @property
    def rows(self) -> int:
        """Number of generations, prompts times ``n``; generation ``i`` continues prompt ``i // n``."""
        return len(self.prompts) * self.n

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens in all prompts; a prompt with several answers counts once."""
        return sum(len(prompt) for prompt in self.prompts)

    def requests(self) -> list[Request]:
        """Return one engine request for each generation."""
        common, seed = self.request, self.request.sampling.seed
        samplings = [replace(common.sampling, seed=None if seed is None else seed + i) for i in range(self.n)]
        return [replace(common, prompt_ids=list(ids), sampling=each) for ids in self.prompts for each in samplings]


def make_backend(options: EngineOptions) -> LocalBackend:
    """Return a backend for this process, whose engine is not started."""
    tokenizer = TextTokenizer(Path(options.directory))
    return LocalBackend(make_engine(options), tokenizer, options.most_step_seconds)


class LocalBackend:
    """Runs jobs on the engine of this process. ``RayBackend`` has the same methods."""

    def __init__(self, engine: Engine, tokenizer: TextTokenizer, most_step_seconds: float = math.inf) -> None:
        self.engine = engine
        self._most_step_seconds = most_step_seconds
        self._tokenizer, self._token_texts = tokenizer, TokenTexts(tokenizer)
        self._drafted = 0  # accepted drafts in answers; tokens after a stop string do not count

    @property
    def state(self) -> str:
        """``loading``, ``ready``, ``stuck`` in a step, or ``dead``."""
        stuck = self.engine.state == "ready" and self.engine.step_seconds > self._most_step_seconds
        return "stuck" if stuck else self.engine.state

    def gauges(self) -> dict[str, float]:
        """Return the engine's gauges and counters by their names in :mod:`lucid_deploy.serving.metrics`."""
        return {**self.engine.gauges(), "draft_tokens_accepted": float(self._drafted)}

    async def generate(self, job: Job) -> AsyncGenerator[list[TextPiece], None]:
        """Run a job and yield its text in pieces, or raise an ApiError; closing the generator cancels the job."""
        rows = {row: RowText(row, job, self._tokenizer, self._token_texts) for row in range(job.rows)}
        stream = self.engine.submit(job.requests())
        try:
            while rows:
                out: list[TextPiece] = []
                for number, event in await stream.next():
                    if number not in rows:  # a stop string ended this generation
                        continue
                    self._drafted += getattr(event, "drafted", False)
                    out.append(new := rows[number].take(event))
                    if new.reason:
                        del rows[number]
                        stream.cancel(number)
                if out:
                    yield out
        finally:
            stream.close()


class RowText:
    """Turns the engine's events of one generation into pieces of text for the client.

    Each piece has the log-probabilities of the tokens whose text begins in it.
    """

    def __init__(self, row: int, job: Job, tokenizer: TextTokenizer, token_texts: TokenTexts) -> None:
        self._row, self._job, self._token_texts = row, job, token_texts
        self._text = AnswerText(tokenizer, job.stops, job.shown_tokens)
        self._waiting: list[TokenLogprob] = []  # of tokens whose text has not been returned yet

    def take(self, event: Token | Finished | ApiError) -> TextPiece:
        """Turn an event of the engine into a piece of text; raise an ApiError if the generation failed."""
        if isinstance(event, ApiError):
            raise event
        if isinstance(event, Token):
            if self._job.request.top_logprobs is not None:
                assert event.logprob is not None  # because it was requested
                chosen, top = self._named(event.token, event.logprob), tuple(self._named(*each) for each in event.top)
                self._waiting.append(TokenLogprob(chosen, top, self._text.decoded))
            text, tokens, reason = self._text.push(event.token), 1, ""
        elif event.reason in ENDS:
            text, tokens, reason = self._text.finish(), 0, ENDS[event.reason]
        elif event.reason == "refused":
            raise ApiError(400, event.error or "")
        else:
            raise ApiError(500, event.error or f"The generation was {event.reason}.", "engine_error")
        stopped = self._text.stopped
        complete = bool(reason) and not stopped
        ready = tuple(item for item in self._waiting if complete or item.offset < self._text.shown)
        self._waiting = self._waiting[len(ready) :]
        return TextPiece(self._row, text, tokens, ready, "stop" if stopped else reason, event.reused)

    def _named(self, token: int, logprob: float) -> TokenText:
        text, data = self._token_texts(token)
        return TokenText(f"token_id:{token}" if self._job.tokens_as_ids else text, data, logprob)
