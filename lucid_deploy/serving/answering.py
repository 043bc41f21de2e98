"""From a job's events to an answer, whole or as server-sent events, while client, clock and server allow it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lucid_deploy.serving.answers import Answer, ResponseAnswer
from lucid_deploy.serving.errors import ApiError, ClientGone, invalid, queue_full, timed_out, unavailable
from lucid_deploy.serving.front import read_body
from lucid_deploy.serving.jobs import Event, Refusal, RowEnd, RowTimes, TextPiece
from lucid_deploy.serving.metrics import TokenClock
from lucid_deploy.serving.requests import Kind, PreparedRequest
from lucid_deploy.serving.security import cache_owner
from lucid_deploy.serving.service import Service
from lucid_deploy.serving.tracing import RequestTrace

T = TypeVar("T")
LAST_WORD_SECONDS = 1.0  # for the error that ends a stream; a client that does not read gets none
CACHED_STEP = 128  # tokens: reused ones are counted so, as OpenAI does; exact counts would spell others' prompts out
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def answer(service: Service, request: Request, kind: Kind) -> Response:
    """Answer a request for completions, a chat or a response."""
    trace = _begin_trace(service, request, kind)
    try:
        return await _answer(service, request, kind, trace)
    except ApiError as error:
        if trace is not None:
            trace.fail(_error_type(error))
        raise


async def _answer(service: Service, request: Request, kind: Kind, trace: RequestTrace | None) -> Response:
    service.check_ready()
    async with preparing(service, request, kind) as (prepared, cancellation):
        prepared = _for_the_engine(service, request, prepared)
    service.check_ready()  # again: the body may have taken its time
    form = ResponseAnswer if kind == "response" else Answer
    whole = form(prepared, service.settings.model, service.settings.fingerprint)
    request.state.answer = whole.id  # for the log
    if trace is not None:
        trace.prepared(prepared)
        trace.answering(whole.id)
    stream = EventStream(service, whole, TokenClock(service.metrics, request.state.started), cancellation, trace)
    await stream.begin()  # until the first event, so that a refusal has its own HTTP status
    service.metrics.prompt_tokens.inc(prepared.prompt_tokens)
    return stream if prepared.stream else await stream.whole_answer()


@asynccontextmanager
async def preparing(
    service: Service, request: Request, kind: Kind
) -> AsyncGenerator[tuple[PreparedRequest, RequestCancellation], None]:
    """Receive a request's body and read it; the request counts as busy until the end of the ``async with``.

    Yields:
        What was read, and what ends further work on it.
    """
    limits, started = service.settings.limits, request.state.started
    cancellation = RequestCancellation(request.receive, started + limits.seconds, limits.seconds, service.ending)
    with service.body_memory.share() as share:  # a body's memory counts until it is read
        body = await read_body(request, limits, started, share)
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


@dataclass(frozen=True)
class RequestCancellation:
    """What ends the work for a request: its client disconnects, its time is over, or the server ends.

    Attributes:
        receive: Says when the client is gone. The request's body must have been received.
    """

    receive: Receive
    deadline: float  # when the request's time is over, by :func:`time.perf_counter`
    seconds: float  # how long that time was, for the message
    ending: asyncio.Event  # set when the server ends what still runs

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Do some work; cancel it when the client disconnects, the time is over or the server ends."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._until_gone())
        ending = asyncio.ensure_future(self.ending.wait())
        everyone: set[asyncio.Future[Any]] = {task, gone, ending}
        try:
            left = max(0.0, self.deadline - time.perf_counter())
            await asyncio.wait(everyone, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientGone
            if ending.done():
                raise unavailable("The server is shutting down.", "shutting_down")
            raise timed_out(self.seconds)
        finally:
            for future in everyone:
                future.cancel()
            await asyncio.gather(*everyone, return_exceptions=True)

    async def _until_gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


def _begin_trace(service: Service, request: Request, kind: Kind) -> RequestTrace | None:
    """Begin a request's spans; the guard ends them."""
    if service.tracing is None:
        return None
    headers, state = request.scope["headers"], request.state
    trace = service.tracing.begin(headers, kind, service.settings.model, state.started)
    state.trace = trace
    return trace


def _error_type(error: ApiError) -> str:
    return error.code or ("invalid_request" if error.status < 500 else "internal_error")


def _for_the_engine(service: Service, request: Request, prepared: PreparedRequest) -> PreparedRequest:
    """Note in a job whose stored prefixes it may use, and whether it is timed."""
    key = "" if service.settings.share_prefixes else request.state.key
    owner = cache_owner(key, prepared.cache_salt)
    return replace(prepared, job=replace(prepared.job, cache_owner=owner, timed=service.tracing is not None))


class EventStream(StreamingResponse):
    """An answer by server-sent events, as its form writes them.

    Args:
        clock: Times tokens.
    """

    def __init__(
        self,
        service: Service,
        answer: Answer | ResponseAnswer,
        clock: TokenClock,
        cancellation: RequestCancellation,
        trace: RequestTrace | None = None,
    ) -> None:
        super().__init__(iter(()), headers=SSE_HEADERS, media_type="text/event-stream")
        self._service = service
        self._answer = answer
        self._clock = clock
        self._cancellation = cancellation
        self._trace = trace
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
                self._service.metrics.rejected.labels(_error_type(error)).inc()
                scope["state"]["status"] = error.status  # for the log: the status line was sent long ago
                if self._trace is not None:
                    self._trace.fail(_error_type(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_WORD_SECONDS):
                        await self._send_events(send, self._answer.failure(error))
                        await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self.close()

    async def _next(self) -> list[Event]:
        events = await self._from_engine()
        for event in events:
            if isinstance(event, Refusal):
                raise _refused(event)
            if isinstance(event, RowEnd) and event.reason not in ("stop", "length"):
                raise invalid(event.message) if event.reason == "invalid" else _failed(event.message)
            if isinstance(event, RowEnd):
                self._open -= 1
                if event.row % self._answer.request.job.n == 0:  # a prompt counts once, as in prompt_tokens
                    self._answer.cached_tokens += event.reused - event.reused % CACHED_STEP
            elif isinstance(event, TextPiece) and event.tokens:
                self._clock.tick(event.row)
        return events

    async def _from_engine(self) -> list[Event]:
        """Return the next events for the client; times of phases are for the trace only."""
        while True:
            events = await anext(self._events)
            if self._trace is None:
                return events
            self._trace.take(events)
            rest: list[Event] = [event for event in events if not isinstance(event, RowTimes)]
            if rest:
                return rest

    async def _all(self) -> AsyncGenerator[list[Event], None]:
        yield self._first
        while self._open:
            yield await self._next()

    async def _collect(self) -> None:
        async for events in self._all():
            for event in events:
                if isinstance(event, TextPiece):
                    self._answer.add(event)
                elif isinstance(event, RowEnd):
                    self._answer.end(event.row, event.reason)

    async def _send_all(self, send: Send) -> None:
        answer = self._answer
        for chunk in answer.opening():
            await self._send_events(send, chunk)
        async for events in self._all():
            for event in events:
                if isinstance(event, TextPiece):
                    await self._send_events(send, *answer.chunks(event))
                elif isinstance(event, RowEnd):
                    await self._send_events(send, *answer.closing(event.row, event.reason))
        await self._send_events(send, *answer.ending())
        await send({"type": "http.response.body", "body": answer.end_of_stream, "more_body": False})

    async def _send_events(self, send: Send, *events: dict[str, Any]) -> None:
        for event in events:
            await send({"type": "http.response.body", "body": self._answer.frame(event), "more_body": True})


def _refused(refusal: Refusal) -> ApiError:
    if refusal.kind == "queue_full":
        return queue_full(refusal.retry_after)
    if refusal.kind == "invalid":
        return invalid(refusal.message)
    return unavailable(refusal.message, "engine_down")


def _failed(message: str) -> ApiError:
    return ApiError(500, message, "engine_error")
