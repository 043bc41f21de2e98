"""From a job's events to an answer, whole or as server-sent events, while client, clock and server allow it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lucid_deploy.serving.errors import ApiError, invalid, queue_full, unavailable
from lucid_deploy.serving.http_body import read_body
from lucid_deploy.serving.jobs import Event, Refusal, RowEnd, RowTimes, TextPiece
from lucid_deploy.serving.metrics import TokenClock
from lucid_deploy.serving.requests import Kind, PreparedRequest
from lucid_deploy.serving.responses import Answer
from lucid_deploy.serving.responses_api_answer import ResponseAnswer
from lucid_deploy.serving.security import cache_owner
from lucid_deploy.serving.service import Service
from lucid_deploy.serving.tracing import RequestTrace
from lucid_deploy.serving.waiting import RequestCancellation

LAST_WORD_SECONDS = 1.0  # for the error that ends a stream; a client that does not read gets none
CACHED_STEP = 128  # tokens: reused ones are counted so, as OpenAI does; exact counts would spell others' prompts out
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def answer(service: Service, request: Request, kind: Kind) -> Response:
    """Answer a request for completions, a chat or a response.

    Raises:
        ApiError: The request is wrong, refused, or took too long.
        ClientGone: The client closed the connection.
    """
    trace = _begin_trace(service, request, kind)
    try:
        return await _answer(service, request, kind, trace)
    except ApiError as error:
        if trace is not None:
            trace.fail(_error_type(error))
        raise


async def _answer(service: Service, request: Request, kind: Kind, trace: RequestTrace | None) -> Response:
    service.check_ready()
    prepared, patience = await prepare(service, request, kind)
    prepared = _for_the_engine(service, request, prepared)
    service.check_ready()  # again: the body may have taken its time
    form = ResponseAnswer if kind == "response" else Answer
    whole = form(prepared, service.settings.model, service.settings.fingerprint)
    request.state.answer = whole.id  # for the log
    if trace is not None:
        trace.prepared(prepared)
        trace.answering(whole.id)
    stream = EventStream(service, whole, TokenClock(service.metrics, request.state.started), patience, trace)
    await stream.begin()  # until the first event, so that a refusal has its own HTTP status
    service.metrics.prompt_tokens.inc(prepared.prompt_tokens)
    return stream if prepared.stream else await stream.whole_answer()


async def prepare(service: Service, request: Request, kind: Kind) -> tuple[PreparedRequest, RequestCancellation]:
    """Take in a request's body and read it.

    Returns:
        What was read, and what ends further work on it.

    Raises:
        ApiError: It is wrong, refused, or took too long.
        ClientGone: The client closed the connection.
    """
    limits, started = service.settings.limits, request.state.started
    patience = RequestCancellation(request.receive, started + limits.seconds, limits.seconds, service.ending)
    return await _read(service, request, patience, kind), patience


async def _read(service: Service, request: Request, patience: RequestCancellation, kind: Kind) -> PreparedRequest:
    """Take in a body and read it; its memory counts as held until then."""
    with service.body_memory.share() as share:
        body = await read_body(request, service.settings.limits, request.state.started, share)
        return await patience.during(service.readers.read(body, kind))


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
        service: The application's state.
        answer: What turns events into JSON.
        clock: Times tokens.
        patience: What ends it early.
        trace: Its spans, if there are any.
    """

    def __init__(
        self,
        service: Service,
        answer: Answer | ResponseAnswer,
        clock: TokenClock,
        patience: RequestCancellation,
        trace: RequestTrace | None = None,
    ) -> None:
        super().__init__(iter(()), headers=SSE_HEADERS, media_type="text/event-stream")
        self._service = service
        self._answer = answer
        self._clock = clock
        self._patience = patience
        self._trace = trace
        self._open = answer.request.job.rows
        self._first: list[Event] = []
        self._events: AsyncGenerator[list[Event], None] = service.backend.generate(answer.request.job)

    async def begin(self) -> None:
        """Queue the job and wait for its first event.

        Raises:
            ApiError: It was refused, or time ran out while it waited.
            ClientGone: The client closed the connection.
        """
        self._service.busy += 1
        try:
            self._first = await self._patience.during(self._next())
        except BaseException:
            await self.close()
            raise

    async def whole_answer(self) -> Response:
        """Return the answer in one piece.

        Raises:
            ApiError: The engine failed, the time is over, or the server is ending.
            ClientGone: The client closed the connection.
        """
        try:
            await self._patience.during(self._collect())
        finally:
            await self.close()
        return JSONResponse(self._answer.whole())

    async def close(self) -> None:
        """Free what the job holds."""
        self._service.busy -= 1
        await self._events.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; called by the framework."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self._patience.during(self._send_all(send))
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
