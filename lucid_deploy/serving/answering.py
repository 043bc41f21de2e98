"""From a request to a job, and from the job's events to an answer, in one piece or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.serving.answers import Answer
from lucid_deploy.serving.errors import ApiError, refusal_error
from lucid_deploy.serving.front import Exchange
from lucid_deploy.serving.jobs import Event, Refusal, RowEnd, RowMark
from lucid_deploy.serving.requests import Kind
from lucid_deploy.serving.responses_api import ResponseAnswer
from lucid_deploy.serving.security import cache_owner

LAST_WORD_SECONDS = 1.0  # to send the error that ends a stream; a client that does not read misses it
CACHED_STEP = 128  # tokens; OpenAI counts reused ones in such steps, and exact counts could reveal others' prompts
SSE_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Endpoint:
    """Answers requests of one kind: completions, chats or responses."""

    def __init__(self, kind: Kind) -> None:
        self._kind: Kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope["exchange"]
        service = exchange.service
        exchange.kind = self._kind
        prepared = await exchange.prepare(self._kind)
        owner = cache_owner("" if service.api.share_prefixes else exchange.key, prepared.cache_salt)
        prepared = replace(prepared, job=replace(prepared.job, client=exchange.key, cache_owner=owner))
        form = ResponseAnswer if self._kind == "response" else Answer
        answer = form(prepared, prepared.job.adapter or service.setup.model, service.setup.fingerprint)
        exchange.answer = answer
        async with aclosing(service.backend.generate(prepared.job)) as events:
            running = RunningAnswer(exchange, answer, events)
            first = await exchange.during(running.next())  # so that a refusal has its own HTTP status
            service.metrics.prompt_tokens.inc(prepared.prompt_tokens)
            if prepared.stream:
                await running.stream(first, send)
                return
            await exchange.during(running.collect(first))
        await Response(msgspec.json.encode(answer.whole()), media_type="application/json")(scope, receive, send)


class RunningAnswer:
    """The events of a job on their way into its answer."""

    def __init__(self, exchange: Exchange, answer: Answer, events: AsyncGenerator[list[Event], None]) -> None:
        self._exchange, self._answer, self._events = exchange, answer, events
        self._open = answer.request.job.rows
        self._last: dict[int, float] = {}  # when each generation's last token came, by time.perf_counter

    async def next(self) -> list[Event]:
        events: list[Event] = []
        while not events:
            for event in await anext(self._events):
                if isinstance(event, RowMark):
                    self._exchange.marks.append(event)
                else:
                    events.append(event)
        for event in events:
            if isinstance(event, Refusal):
                raise refusal_error(event)
            if isinstance(event, RowEnd):
                self._end(event)
            elif isinstance(event, TextPiece) and event.tokens:
                self._tick(event.row)
        return events

    def _end(self, event: RowEnd) -> None:
        self._exchange.reasons[event.row] = event.reason
        self._exchange.marks.append(RowMark(event.row, "end", time.time_ns()))
        if event.reason == "invalid":
            raise ApiError(400, event.message)
        if event.reason == "error":
            raise ApiError(500, event.message, "engine_error")
        self._open -= 1
        if event.row % self._answer.request.job.n == 0:  # count each prompt once, as prompt_tokens does
            self._answer.cached_tokens += event.reused - event.reused % CACHED_STEP

    def _tick(self, row: int) -> None:
        metrics, now = self._exchange.service.metrics, time.perf_counter()
        if not self._last:
            self._exchange.first_token = now - self._exchange.started
            metrics.first.observe(self._exchange.first_token)
        if row in self._last:
            metrics.between.observe(now - self._last[row])
        self._last[row] = now
        metrics.new_tokens.inc()

    async def _chunks(self, events: list[Event]) -> AsyncGenerator[dict[str, Any], None]:
        """Yield what a stream sends for these events and all that follow."""
        while True:
            for event in events:
                if isinstance(event, TextPiece):
                    chunks = self._answer.chunks(event)
                else:
                    assert isinstance(event, RowEnd)
                    chunks = self._answer.closing(event.row, event.reason)
                for chunk in chunks:
                    yield chunk
            if not self._open:
                return
            events = await self.next()

    async def collect(self, first: list[Event]) -> None:
        """Collect the whole answer; ``first`` are the events that have come."""
        async for _ in self._chunks(first):
            pass

    async def stream(self, first: list[Event], send: Send) -> None:
        """Send server-sent events; an error is the last of them."""
        await send({"type": "http.response.start", "status": 200, "headers": SSE_HEADERS})
        try:
            await self._exchange.during(self._send_all(first, send))
        except ApiError as error:
            await self._exchange.refuse(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    await _send(send, self._answer.frame(self._answer.failure(error)))
                    await _send(send, b"", more=False)

    async def _send_all(self, first: list[Event], send: Send) -> None:
        answer = self._answer
        for event in answer.opening():
            await _send(send, answer.frame(event))
        async for event in self._chunks(first):
            await _send(send, answer.frame(event))
        for event in answer.ending():
            await _send(send, answer.frame(event))
        await _send(send, answer.end_of_stream, more=False)


async def _send(send: Send, body: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
