"""From a job's events to an answer, whole or as server-sent events, while client, clock and server allow it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from lucid_deploy.serving.errors import ApiError, ClientGone, invalid, queue_full, timed_out, unavailable
from lucid_deploy.serving.jobs import Event, Piece, Refusal, RowEnd
from lucid_deploy.serving.metrics import TokenClock
from lucid_deploy.serving.responses import Answer

if TYPE_CHECKING:
    from lucid_deploy.serving.app import Service

T = TypeVar("T")
LAST_WORD_SECONDS = 1.0  # for the error that ends a stream; a client that does not read gets none
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """An answer by server-sent events: ``data: {…}`` for every chunk, ``data: [DONE]`` at the end.

    Args:
        service: The application's state.
        answer: What turns events into JSON.
        clock: Times tokens.
        deadline: When the request's time is over, by :func:`time.perf_counter`.
    """

    def __init__(self, service: Service, answer: Answer, clock: TokenClock, deadline: float) -> None:
        super().__init__(iter(()), headers=SSE_HEADERS, media_type="text/event-stream")
        self._service = service
        self._answer = answer
        self._clock = clock
        self._deadline = deadline
        self._seconds = service.settings.limits.seconds
        self._open = answer.request.job.rows
        self._first: list[Event] = []
        self._events: AsyncGenerator[list[Event], None] = service.backend.generate(answer.request.job)

    async def begin(self, receive: Receive) -> None:
        """Queue the job and wait for its first event.

        Raises:
            ApiError: It was refused, or time ran out while it waited.
            ClientGone: The client closed the connection.
        """
        self._service.busy += 1
        try:
            self._first = await self.guarded(self._next(), receive)
        except BaseException:
            await self.close()
            raise

    async def collect(self) -> None:
        """Take everything into the answer.

        Raises:
            ApiError: The engine failed.
        """
        async for events in self._all():
            for event in events:
                if isinstance(event, Piece):
                    self._answer.add(event)
                elif isinstance(event, RowEnd):
                    self._answer.end(event.row, event.reason)

    def whole(self) -> dict[str, Any]:
        """Return what was collected as JSON."""
        return self._answer.whole()

    async def close(self) -> None:
        """Free what the job holds."""
        self._service.busy -= 1
        await self._events.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; called by the framework."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await self.guarded(self._send_all(send), receive)
            except ApiError as error:
                self._service.metrics.rejected.labels(error.code or "internal_error").inc()
                scope["state"]["status"] = error.status  # for the log: the status line was sent long ago
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_WORD_SECONDS):
                        await _send_event(send, error.body())
                        await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self.close()

    async def guarded(self, work: Coroutine[Any, Any, T], receive: Receive) -> T:
        """Do some work unless the client leaves, the time is over or the server ends it.

        Raises:
            ApiError: The time is over, or the server is ending.
            ClientGone: The client closed the connection.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_until_gone(receive))
        ending = asyncio.ensure_future(self._service.ending.wait())
        everyone: set[asyncio.Future[Any]] = {task, gone, ending}
        try:
            left = max(0.0, self._deadline - time.perf_counter())
            await asyncio.wait(everyone, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise ClientGone
            raise (
                unavailable("The server is shutting down.", "shutting_down")
                if ending.done()
                else timed_out(self._seconds)
            )
        finally:
            for future in everyone:
                future.cancel()
            await asyncio.gather(*everyone, return_exceptions=True)

    async def _next(self) -> list[Event]:
        events = await anext(self._events)
        for event in events:
            if isinstance(event, Refusal):
                raise _refused(event)
            if isinstance(event, RowEnd) and event.reason not in ("stop", "length"):
                raise invalid(event.message) if event.reason == "invalid" else _failed(event.message)
            if isinstance(event, RowEnd):
                self._open -= 1
            elif event.tokens:
                self._clock.tick(event.row)
        return events

    async def _all(self) -> AsyncGenerator[list[Event], None]:
        yield self._first
        while self._open:
            yield await self._next()

    async def _send_all(self, send: Send) -> None:
        answer = self._answer
        for chunk in answer.opening():
            await _send_event(send, chunk)
        async for events in self._all():
            for event in events:
                if isinstance(event, Piece):
                    piece = answer.chunk(event)
                    if piece is not None:
                        await _send_event(send, piece)
                elif isinstance(event, RowEnd):
                    await _send_event(send, answer.closing(event.row, event.reason))
        if answer.request.include_usage:
            await _send_event(send, answer.usage_chunk())
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def whole_answer(stream: EventStream, receive: Receive) -> Response:
    """Return the answer in one piece.

    Raises:
        ApiError: The engine failed, the time is over, or the server is ending.
        ClientGone: The client closed the connection.
    """
    try:
        await stream.guarded(stream.collect(), receive)
    finally:
        await stream.close()
    return JSONResponse(stream.whole())


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_event(send: Send, data: dict[str, Any]) -> None:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    await send({"type": "http.response.body", "body": f"data: {text}\n\n".encode(), "more_body": True})


def _refused(refusal: Refusal) -> ApiError:
    if refusal.kind == "queue_full":
        return queue_full(refusal.retry_after)
    if refusal.kind == "invalid":
        return invalid(refusal.message)
    return unavailable(refusal.message, "engine_down")


def _failed(message: str) -> ApiError:
    return ApiError(500, message, "engine_error")
