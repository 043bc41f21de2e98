"""Connections: how many are open, how long each may wait for its client, and answers to what is not valid HTTP."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from lucid_deploy.serving.errors import ApiError, unavailable

log = logging.getLogger("lucid_deploy.serving")
READ_BYTES = 1 << 10  # parsed at once, before other connections get a turn; also bounds pipelined requests
MOST_HEAD = 64 << 10  # bytes
MOST_FRAMING = 4 << 10  # bytes of chunk sizes and trailers beyond those of the body: chunks of one byte are refused


class ConnectionTable:
    """The open connections of a server, and since when each waits for its client.

    A connection waits for its client until a whole request has arrived, after the answer, and while an answer is not
    read. While a request is being answered it does not wait.
    """

    def __init__(self, most: int, idle_seconds: float) -> None:
        self._most, self.idle_seconds = most, idle_seconds
        self.open: set[Connection] = set()
        self.waiting: dict[Connection, None] = {}  # the longest wait first

    def add(self, connection: Connection) -> bool:
        """Add a connection, in the place of the one that waits longest if there are too many.

        It is not added, and False returned, if requests are being answered on all others.
        """
        if len(self.open) >= self._most:
            if not self.waiting:
                return False
            longest = next(iter(self.waiting))
            self.remove(longest)
            longest.transport.abort()
        self.open.add(connection)
        self.set_waiting(connection, True)
        return True

    def set_waiting(self, connection: Connection, waiting: bool) -> None:
        """Note whether a connection waits for its client, from now on."""
        self.waiting.pop(connection, None)
        if waiting and connection in self.open:
            self.waiting[connection] = None

    def remove(self, connection: Connection) -> None:
        self.open.discard(connection)
        self.waiting.pop(connection, None)


class Connection(HttpToolsProtocol, asyncio.BufferedProtocol):
    """uvicorn's protocol, with bounds on sizes and on the seconds of silence, and errors in the API's form."""

    def __init__(self, table: ConnectionTable, **rest: Any) -> None:
        super().__init__(**rest)
        self.answered = False
        self._table = table
        self._running: RequestResponseCycle | None = None  # of the request that is being answered
        self._buffer = bytearray(READ_BYTES)
        self._timer: asyncio.TimerHandle | None = None
        self._received = self._body = 0  # bytes of the head or body that arrives now, and those of them that are body
        self._in_head = True
        self._dropping = False  # after an error: ignore what the client still sends

    @property
    def is_answering(self) -> bool:
        """Whether a request is being answered, or its body is arriving."""
        return self._running is not None and not self._running.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._table.add(self):
            self._wait(True)
        else:
            self._refuse(unavailable("The server has too many connections. Try again.", "too_many_connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._disconnect()  # uvicorn tells only the latest request, which may be queued behind others
        self._wait(False)
        self._table.remove(self)

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
            self._wait(False)

    def on_response_complete(self) -> None:
        self.answered = True
        next_is_whole = bool(self.pipeline) and not self.pipeline[-1][0].more_body
        super().on_response_complete()  # begins to answer the next request, if there is one
        if not next_is_whole:
            self._wait(True)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait(True)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._wait(not self.is_answering)

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

    def _wait(self, waiting: bool) -> None:
        """Note whether the client is to do something, and from now on."""
        self._table.set_waiting(self, waiting)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(self._table.idle_seconds, self._time_is_up) if waiting else None

    def _time_is_up(self) -> None:
        """Cut a connection whose client does not read; close one whose client sends no request."""
        if self.transport.is_closing() or self._dropping or self.flow.write_paused:
            if self.transport.get_write_buffer_size():
                log.warning("A client did not read its answer; its connection was cut.")
            self.transport.abort()
        elif self._received and self._in_head and not self.is_answering:
            self._refuse(ApiError(408, "The request's head did not arrive in time.", "timeout"))
        elif not self.is_answering:  # reading the body has a time limit of its own
            self.transport.close()
            self._wait(True)

    def _refuse(self, error: ApiError) -> None:
        """Send an error without asking the application, and end the connection."""
        self._dropping = True
        begun = self.is_answering and self._running is not None and self._running.response_started
        self._disconnect()
        self.pipeline.clear()
        if self.transport.is_closing():
            return
        if not begun:
            body = json.dumps(error.body()).encode()
            headers = {"content-type": "application/json", "content-length": len(body), "connection": "close"}
            lines = [f"{name}: {value}\r\n" for name, value in {**headers, **error.headers}.items()]
            self.transport.write(STATUS_LINE[error.status] + "".join(lines).encode() + b"\r\n" + body)
        self.flow.resume_reading()
        self.transport.write_eof()  # closing would reset a connection on which the client still sends
        self._wait(True)

    def _disconnect(self) -> None:
        """Tell the application that its client has left."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.waiting_for_100_continue = False  # or uvicorn would write it after the end
            self._running.message_event.set()
