"""uvicorn's HTTP protocol with limits on open connections, on what they send, and on how long they wait.

A connection beyond a limit is closed without an answer; a reverse proxy in front can answer such clients.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

READ_BYTES = 1 << 10  # bytes parsed before other connections get a turn; also bounds pipelined requests
MOST_FRAMING = 64 << 10  # bytes of a request beyond twice its body: head, chunk sizes and trailers


@dataclass
class ConnectionLimits:
    """The limits that all connections of a server share, and the connections that are waiting."""

    most: int  # connections that may be open
    idle_seconds: float  # longest wait for a client to send a whole request, read the answer, or send another request
    waiting: dict[Connection, None] = field(default_factory=dict)  # connections that wait for clients, longest first


class Connection(HttpToolsProtocol, asyncio.BufferedProtocol):
    """One connection. If a new one exceeds the limit, the one that has waited longest for its client is closed."""

    def __init__(self, limits: ConnectionLimits, **rest: Any) -> None:
        super().__init__(**rest)
        self._limits = limits
        self._current: RequestResponseCycle | None = None  # the request that is being answered or was answered last
        self._buffer = bytearray(READ_BYTES)
        self._timer: asyncio.TimerHandle | None = None
        self._received = self._body = 0  # bytes received of the current request, and those of them in its body

    @property
    def answered(self) -> bool:
        """Whether the client's last request was answered, and no other one is arriving."""
        return self._current is not None and self._current.response_complete and not self._received

    def drop(self) -> None:
        """Close the connection at once."""
        self._set_waiting(False)
        self.connections.discard(self)
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._update_waiting()
        if len(self.connections) > self._limits.most:
            next(iter(self._limits.waiting)).drop()  # this one itself, if requests are being answered on all others

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._set_waiting(False)
        if self._current is not None and not self._current.response_complete:
            self._current.disconnected = True  # of several pipelined requests, uvicorn sets it for the last only
            self._current.message_event.set()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._received += nbytes
        self.data_received(bytes(self._buffer[:nbytes]))
        if self._received > MOST_FRAMING + 2 * self._body:
            self.drop()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._received = max(1, self._received)
        self._update_waiting()

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._received = self._body = 0
        self._update_waiting()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._current = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()  # starts to answer the next pipelined request, if there is one
        self._update_waiting()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._update_waiting()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._update_waiting()

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: HTTP lets servers ignore Upgrade headers, and Java's client requests h2c on each connection."""

    def _update_waiting(self) -> None:
        current = self._current
        arriving = current is None or current.response_complete or current.more_body
        self._set_waiting(arriving or self.flow.write_paused)

    def _set_waiting(self, waiting: bool) -> None:
        """Record whether the connection waits for its client; if so, close it after ``idle_seconds``."""
        self._limits.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
        if waiting:
            self._limits.waiting[self] = None
        self._timer = self.loop.call_later(self._limits.idle_seconds, self.drop) if waiting else None
