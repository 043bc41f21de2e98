"""Connections: how many are open, how long each may wait for its client, and answers to what is not valid HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from lucid_deploy.serving.errors import ApiError, unavailable

log = logging.getLogger("lucid_deploy.serving")
READ_BYTES = 1 << 10  # parsed at once; then other connections have their turn. It also bounds what is sent ahead
MOST_HEAD = 64 << 10  # bytes
MOST_FRAMING = 4 << 10  # bytes of chunk sizes and trailers beyond those of the body: chunks of one byte are refused
LINGER_SECONDS = 2.0  # for a client that still sends to read why it was refused


class ConnectionTable:
    """The open connections of a server, in the order in which they began to wait for their clients.

    A connection waits for its client until a whole request has arrived, and after the answer. While a request is being
    answered it does not wait.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._open: set[Connection] = set()
        self._waiting: dict[Connection, None] = {}

    def __len__(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> list[Connection]:
        """Connections that wait for their clients, the longest wait first."""
        return list(self._waiting)

    def add(self, connection: Connection) -> bool:
        """Add a connection, in the place of the one that waits longest if there are too many.

        It is not added, and False returned, if requests are being answered on all others.
        """
        if len(self._open) >= self._most:
            if not self._waiting:
                return False
            longest = next(iter(self._waiting))
            self.remove(longest)
            longest.transport.abort()
        self._open.add(connection)
        self._waiting[connection] = None
        return True

    def set_waiting(self, connection: Connection, waiting: bool) -> None:
        """Note whether a connection waits for its client, from now on."""
        self._waiting.pop(connection, None)
        if waiting and connection in self._open:
            self._waiting[connection] = None

    def remove(self, connection: Connection) -> None:
        """Remove a connection that was closed."""
        self._open.discard(connection)
        self._waiting.pop(connection, None)


class Connection(HttpToolsProtocol, asyncio.BufferedProtocol):
    """uvicorn's protocol, with bounds on sizes and on the ``idle_seconds`` of silence, and errors in the API's form."""

    def __init__(self, table: ConnectionTable, idle_seconds: float, **rest: Any) -> None:
        super().__init__(**rest)
        self.answered = False
        self._table, self._idle_seconds = table, idle_seconds
        self._running: RequestResponseCycle | None = None  # of the request that is being answered
        self._buffer = bytearray(READ_BYTES)
        self._timer: asyncio.TimerHandle | None = None
        self._received = self._body = 0  # bytes of the head or body that arrives now, and those of them that are body
        self._in_head = True
        self._dropping = False  # after a refusal: what the client still sends is not looked at

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered, or its body is arriving."""
        return self._running is not None and not self._running.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._table.add(self):
            self._wait(self._idle_seconds)
        else:
            self._refuse(unavailable("The server has too many connections. Try again.", "too_many_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._disconnect()  # uvicorn says it only to the latest request, which may wait behind others
        self._table.remove(self)
        self._wait(None)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._dropping:
            return
        self._received += nbytes
        self.data_received(bytes(self._buffer[:nbytes]))
        if self._dropping:
            return
        if self._in_head and self._received > MOST_HEAD:
            self._refuse(ApiError(431, "The request's head is too large."))
        elif not self._in_head and self._received > 2 * self._body + MOST_FRAMING:
            self._refuse(ApiError(400, "The body's chunks are too small. Send it in larger ones."))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_head, self._received = False, 0

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._received = self._body = 0
        self._in_head = True
        if not self.cycle.response_complete:
            self._table.set_waiting(self, False)
            self._wait(None)

    def on_response_complete(self) -> None:
        self.answered = True
        next_is_whole = bool(self.pipeline) and not self.pipeline[-1][0].more_body
        super().on_response_complete()  # begins to answer the next request, if there is one
        if not next_is_whole:
            self._table.set_waiting(self, True)
            self._wait(self._idle_seconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait(self._idle_seconds)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait(None if self.is_answering else self._idle_seconds)

    def _unsupported_upgrade_warning(self) -> None:
        """Ignore Upgrade headers, as HTTP allows: Java's client asks for h2c with each connection's first request."""

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, "The request is not valid HTTP."))

    def close(self) -> None:
        """Close at the server's end, whether the client has sent its request or not."""
        if self.is_answering:
            self._refuse(unavailable("The server is shutting down.", "shutting_down"))
        else:
            self.transport.close()

    def _wait(self, seconds: float | None) -> None:
        """Give the client so many seconds from now for what it is to do next; None: it is to do nothing."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._time_is_up)

    def _time_is_up(self) -> None:
        """Cut a connection whose client does not read; close one whose client sends no request."""
        if self.transport.is_closing() or self._dropping or self.flow.write_paused:
            if self.transport.get_write_buffer_size():
                log.warning("A client did not read its answer for %g s; its connection was cut.", self._idle_seconds)
            self.transport.abort()
        elif self._received and self._in_head and not self.is_answering:
            self._refuse(ApiError(408, "The request's head did not arrive in time.", "timeout"))
        elif not self.is_answering:  # reading the body has a time limit of its own
            self.transport.close()
            self._wait(self._idle_seconds)

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error in front of the application, and end the connection."""
        self._dropping = True
        begun = self.is_answering and self._running is not None and self._running.response_started
        self._disconnect()
        self.pipeline.clear()
        if self.transport.is_closing():
            return
        if not begun:
            body = json.dumps(error.body()).encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n" % len(body)
            extra = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items()).encode()
            self.transport.write(STATUS_LINE[error.status] + head + extra + b"\r\n" + body)
        self.flow.resume_reading()
        self.transport.write_eof()  # and not closed: that resets a connection on which the client still sends
        self._wait(LINGER_SECONDS)

    def _disconnect(self) -> None:
        """Tell the application that its client has left."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.waiting_for_100_continue = False  # or it would be written behind the end
            self._running.message_event.set()
