"""From a body to a job, and from the job's events to an answer, while client, clock and server allow it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lucid_deploy.generation.text_stream import TextPiece
from lucid_deploy.serving.answers import Answer, ResponseAnswer
from lucid_deploy.serving.engine import Event, Refusal, RowEnd, RowTimes
from lucid_deploy.serving.errors import ApiError, ClientGone, queue_full, timed_out, unavailable
from lucid_deploy.serving.front import Service
from lucid_deploy.serving.metrics import TokenClock
from lucid_deploy.serving.requests import Kind, PreparedRequest
from lucid_deploy.serving.security import cache_owner
from lucid_deploy.serving.tracing import RequestTrace

T = TypeVar("T")
LAST_WORD_SECONDS = 1.0  # for the error that ends a stream; a client that does not read gets none
CACHED_STEP = 128  # tokens: reused ones are counted so, as OpenAI does; exact counts would spell others' prompts out
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def answer(service: Service, request: Request, kind: Kind) -> Response:
    """Answer a request for completions, a chat or a response."""
    trace: RequestTrace | None = None
    if service.tracing is not None:  # the guard ends the trace
        trace = service.tracing.begin(request.scope["headers"], kind, service.settings.model, request.state.started)
        request.state.trace = trace
    try:
        return await _answer(service, request, kind, trace)
    except ApiError as error:
        if trace is not None:
            trace.fail(error.code)
        raise


async def _answer(service: Service, request: Request, kind: Kind, trace: RequestTrace | None) -> Response:
    service.check_ready()
    async with preparing(service, request, kind) as (prepared, cancellation):
        key = request.state.key
        owner = cache_owner("" if service.settings.share_prefixes else key, prepared.cache_salt)
        job = replace(prepared.job, client=key, cache_owner=owner, timed=trace is not None)
        prepared = replace(prepared, job=job)
    service.check_ready()  # again: the body may have taken its time
    form = ResponseAnswer if kind == "response" else Answer
    whole = form(prepared, service.settings.model, service.settings.fingerprint)
    request.state.answer = whole.id  # for the log
    if trace is not None:
        trace.prepared(prepared, whole.id)
    stream = EventStream(service, whole, TokenClock(service.metrics, request.state.started), cancellation, trace)
    await stream.begin()  # until the first event, so that a refusal has its own HTTP status
    service.metrics.prompt_tokens.inc(prepared.prompt_tokens)
    return stream if prepared.stream else await stream.whole_answer()


@asynccontextmanager
async def preparing(
    service: Service, request: Request, kind: Kind
) -> AsyncGenerator[tuple[PreparedRequest, RequestCancellation], None]:
    """Receive a request's body and read it; the request counts as busy until the end of the ``async with``."""
    cancellation = RequestCancellation(service, request)
    with service.body(request) as incoming:  # a body's memory counts until it is read
        body = await incoming.receive(request.state.started)
        service.begin()
        try:
            prepared = await cancellation.during(service.readers.read(body, kind))
        except BaseException:
            service.end()
            raise
    del body
    try:
        yield prepared, cancellation
    finally:
        service.end()


class RequestCancellation:
    """Ends the work for a request, whose body was received, when its client disconnects or its time is over."""

    def __init__(self, service: Service, request: Request) -> None:
        self._receive, self._ending = request.receive, service.ending
        self._seconds = service.settings.limits.seconds
        self._deadline = request.state.started + self._seconds

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work; cancel it when the client disconnects, the time is over or the server ends."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._until_gone())
        ending = asyncio.ensure_future(self._ending.wait())
        everyone: set[asyncio.Future[Any]] = {task, gone, ending}
        try:
            left = max(0.0, self._deadline - time.perf_counter())
            await asyncio.wait(everyone, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientGone
            if ending.done():
                raise unavailable("The server is shutting down.", "shutting_down")
            raise timed_out(self._seconds)
        finally:
            for future in everyone:
                future.cancel()
            await asyncio.gather(*everyone, return_exceptions=True)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


class EventStream(StreamingResponse):
    """An answer by server-sent events, or in one piece."""

    def __init__(
        self,
        service: Service,
        answer: Answer,
        clock: TokenClock,
        cancellation: RequestCancellation,
        trace: RequestTrace | None = None,
    ) -> None:
        super().__init__(iter(()), headers=SSE_HEADERS, media_type="text/event-stream")
        self._service, self._answer, self._clock = service, answer, clock
        self._cancellation, self._trace = cancellation, trace
        self._open = answer.request.job.rows
        self._first: list[Event] = []
        self._events: AsyncGenerator[list[Event], None] = service.backend.generate(answer.request.job)

    async def begin(self) -> None:
        """Queue the job and wait for its first event."""
        self._service.begin()
        try:
            self._first = await self._cancellation.during(self._next())
        except BaseException:
            await self.close()
            raise

    async def whole_answer(self) -> Response:
        """Return the answer in one piece."""
        try:
            await self._cancellation.during(self._collect())
        finally:
            await self.close()
        return Response(msgspec.json.encode(self._answer.whole()), media_type="application/json")

    async def close(self) -> None:
        """Free what the job holds."""
        self._service.end()
        await self._events.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; called by the framework."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self._cancellation.during(self._send_all(send))
            except ApiError as error:
                self._service.metrics.rejected.labels(error.code).inc()
                scope["state"]["status"] = error.status  # for the log: the status line was sent long ago
                if self._trace is not None:
                    self._trace.fail(error.code)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_WORD_SECONDS):
                        await self._send(send, self._answer.frame(self._answer.failure(error)))
                        await self._send(send, b"", more=False)
        finally:
            await self.close()

    async def _next(self) -> list[Event]:
        """Return the next events for the client; times of phases are for the trace only."""
        while True:
            events = await anext(self._events)
            if self._trace is not None:
                self._trace.take(events)
                events = [event for event in events if not isinstance(event, RowTimes)]
            if events:
                break
        for event in events:
            if isinstance(event, Refusal):
                raise refusal_error(event)
            if isinstance(event, RowEnd) and event.reason == "invalid":
                raise ApiError(400, event.message)
            if isinstance(event, RowEnd) and event.reason not in ("stop", "length"):
                raise ApiError(500, event.message, "engine_error")
            if isinstance(event, RowEnd):
                self._open -= 1
                if event.row % self._answer.request.job.n == 0:  # a prompt counts once, as in prompt_tokens
                    self._answer.cached_tokens += event.reused - event.reused % CACHED_STEP
            elif isinstance(event, TextPiece) and event.tokens:
                self._clock.tick(event.row)
        return events

    async def _chunks(self) -> AsyncGenerator[list[dict[str, Any]], None]:
        """Yield what a stream sends for each event of the engine."""
        events = self._first
        while True:
            for event in events:
                if isinstance(event, TextPiece):
                    yield self._answer.chunks(event)
                elif isinstance(event, RowEnd):
                    yield self._answer.closing(event.row, event.reason)
            if not self._open:
                return
            events = await self._next()

    async def _collect(self) -> None:
        async for _ in self._chunks():
            pass

    async def _send_all(self, send: Send) -> None:
        answer = self._answer
        for event in answer.opening():
            await self._send(send, answer.frame(event))
        async for chunks in self._chunks():
            for event in chunks:
                await self._send(send, answer.frame(event))
        for event in answer.ending():
            await self._send(send, answer.frame(event))
        await self._send(send, answer.end_of_stream, more=False)

    async def _send(self, send: Send, body: bytes, more: bool = True) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": more})


def refusal_error(refusal: Refusal) -> ApiError:
    """Return the error that tells a client of a refusal."""
    if refusal.kind == "queue_full":
        return queue_full(refusal.retry_after)
    if refusal.kind == "unsupported":
        return ApiError(501, refusal.message, "not_supported")
    if refusal.kind == "invalid":
        return ApiError(400, refusal.message, "invalid_value" if refusal.param else "invalid_request", refusal.param)
    return unavailable(refusal.message, "engine_down")
