"""Connections: how many, how long they may be silent or not read, and the answers to those that are not HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from lucid_deploy.serving.errors import ApiError
from lucid_deploy.serving.outgoing import Outgoing

log = logging.getLogger("lucid_deploy.serving")
RESERVE = 16  # connections beyond the bound, which get nothing but /healthz
EVICT_SECONDS = 0.1  # that a connection may be silent before it makes room for another
FLUSH_SECONDS = 5.0  # without a byte taken, after the end of a connection whose last answer waits to be sent
PIPELINED_BYTES = 65536  # of further requests behind the one that is being answered
PROBE_SECONDS = (0.1, 1.0)  # between the first two signs of life to a client that may be gone, and after them


class ConnectionTable:
    """The open connections of a server, those that are silent in the order in which they fell so.

    A silent one has neither a request nor something to be sent. Open are those that have a descriptor.

    Args:
        most: Connections that may be open.
        reserve: Further ones while all of those have requests.
    """

    def __init__(self, most: int, reserve: int = RESERVE) -> None:
        self._most = most
        self._reserve = reserve
        self._open: set[Connection] = set()
        self._silent: dict[Connection, float] = {}  # since when, by time.monotonic
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Connections that are open."""
        return len(self._open)

    def note(self, connection: Connection, silent: bool) -> None:
        """Note that a connection is open, and whether it is silent."""
        self._open.add(connection)
        self._silent.pop(connection, None)
        if silent:
            self._silent[connection] = time.monotonic()

    def forget(self, connection: Connection) -> None:
        """Note that a connection is lost: its descriptor is closed."""
        self._open.discard(connection)
        self._silent.pop(connection, None)
        self._changed.set()

    async def room(self) -> bool:
        """Wait a while until one more connection may be accepted; return whether it may.

        The reserve is for when all connections have requests; silent ones make room before.
        """
        if not self._has_room():
            self._changed.clear()
            with contextlib.suppress(TimeoutError):  # one may have been silent for long enough by then
                async with asyncio.timeout(EVICT_SECONDS):
                    await self._changed.wait()
        return self._has_room()

    def admit(self) -> bool:
        """Say whether the next connection is one of the bound; if there must be, close a silent one for it.

        Otherwise it is one of the reserve.
        """
        if len(self._open) < self._most:
            return True
        longest = self._evictable()
        if longest is None:
            return False
        del self._silent[longest]
        longest.close()  # lost in the event loop's next round, as it has nothing to send
        return True

    def all_have_requests(self) -> bool:
        """Say whether every connected client has sent a first request."""
        return all(connection.answered for connection in self._silent)

    def _has_room(self) -> bool:
        if len(self._open) < self._most or self._evictable() is not None:
            return True
        return not self._silent and len(self._open) < self._most + self._reserve

    def _evictable(self) -> Connection | None:
        """Return the connection that is silent for longest, if it is so for long enough."""
        longest = next(iter(self._silent), None)
        ripe = longest is not None and time.monotonic() - self._silent[longest] >= EVICT_SECONDS
        return longest if ripe else None


class Connection(H11Protocol):
    """uvicorn's protocol, with bounds on silence and unread answers, errors in one shape, answers to the half closed.

    Attributes:
        answered: Whether a request was answered.

    Args:
        table: The connections that this one counts among.
        reserved: Whether it is one of the reserve.
        idle_seconds: Seconds for a request's head to arrive, from the start or from the answer before; and
            for a client to take some of an answer.
        answer_seconds: For a client to take all that waits for it.
        rest: As uvicorn's.
    """

    def __init__(
        self, table: ConnectionTable, reserved: bool, idle_seconds: float, answer_seconds: float, **rest: Any
    ) -> None:
        super().__init__(app_state={"reserved": reserved}, **rest)
        self.answered = False
        self._table = table
        self._idle_seconds = idle_seconds
        self._answer_seconds = answer_seconds
        self._outgoing: Outgoing | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._probe_timer: asyncio.TimerHandle | None = None

    @property
    def has_request(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; called by the event loop."""
        self._outgoing = Outgoing(transport, self._on_waiting)
        super().connection_made(self._outgoing)  # type: ignore[arg-type]
        self._fall_silent()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; called by the event loop."""
        super().connection_lost(exc)
        self._table.forget(self)
        for timer in (self._idle_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()
        if self._outgoing is not None:
            self._outgoing.stop_watching()

    def data_received(self, data: bytes) -> None:
        """Take in bytes; called by the event loop."""
        super().data_received(data)
        if self.has_request and self._idle_timer is not None:
            self._table.note(self, silent=False)
            self._idle_timer.cancel()
            self._idle_timer = None
        self._bound_pipelining()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Take note that the client sends nothing more: it may have disconnected, or wait for its answer.

        TCP does not tell which. Something sent to a client that is gone comes back as an error the next time, so a
        client of HTTP/1.1 gets interim answers, which it must pass over.
        """
        if not self.has_request or self.cycle.more_body:
            return False
        self.cycle.keep_alive = False
        if self._probe_timer is None:
            self._probe(PROBE_SECONDS[0])
        return True

    def on_response_complete(self) -> None:
        """Wait for the next request; called when an answer is complete."""
        self.answered = True
        super().on_response_complete()
        self._bound_pipelining()
        self._fall_silent_if_idle()  # not if the next request had been sent already

    def _should_upgrade(self) -> bool:
        """Pass over Upgrade headers, as HTTP allows: Java's client asks for h2c with each connection's first request.

        uvicorn would warn twice, and advise to install a library for web sockets, which are not served.
        """
        return False

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(ApiError(400, "The request is not valid HTTP.", "invalid_request"))

    def close(self) -> None:
        """Close the connection, which is silent."""
        self.timeout_keep_alive_handler()

    def timeout_keep_alive_handler(self) -> None:
        """Close after silence; called by uvicorn, too, which does not know whether an answer waits to be sent."""
        if not self._waiting:
            super().timeout_keep_alive_handler()

    @property
    def _waiting(self) -> bool:
        return self._outgoing is not None and self._outgoing.waiting

    def _on_waiting(self) -> None:
        """Cut off a client that does not read; called while something waits to be sent, and once it has been."""
        outgoing = self._outgoing
        if outgoing is None or not outgoing.waiting:
            self._fall_silent_if_idle()
            return
        closing = self.transport.is_closing()
        patience = min(self._idle_seconds, FLUSH_SECONDS) if closing else self._idle_seconds
        if outgoing.stalled_seconds >= patience:
            log.warning("A client took nothing of its answer for %g s; its connection was cut.", patience)
        elif outgoing.behind_seconds >= self._answer_seconds:
            log.warning("A client did not take its answers within %g s; its connection was cut.", self._answer_seconds)
        else:
            return
        outgoing.stop_watching()
        self.transport.abort()

    def _bound_pipelining(self) -> None:
        """Read no more while many requests wait for their turn."""
        if self._outgoing is not None:
            behind = self.has_request and not self.cycle.more_body
            self._outgoing.hold_reading(behind and len(self.conn.trailing_data[0]) > PIPELINED_BYTES)

    def _fall_silent_if_idle(self) -> None:
        if not (self.has_request or self._waiting or self.transport.is_closing()):
            self._fall_silent()

    def _fall_silent(self) -> None:
        self._table.note(self, silent=True)
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        self._idle_timer = self.loop.call_later(self._idle_seconds, self._on_silence)

    def _on_silence(self) -> None:
        if self.has_request or self._waiting or self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:  # the beginning of a head
            self._refuse(ApiError(408, "The request's head did not arrive in time.", "timeout"))
        else:
            self.close()

    def _refuse(self, error: ApiError) -> None:
        """Answer with an error that comes before the application, and close."""
        body = json.dumps(error.body()).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        reason = STATUS_PHRASES[error.status]
        try:
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:
            pass  # an answer has begun, and what follows the request is not HTTP
        self.transport.close()

    def _probe(self, next_seconds: float) -> None:
        if not self.has_request or self.transport.is_closing():
            return
        if not self.cycle.response_started and self.scope["http_version"] == "1.1":
            event = h11.InformationalResponse(status_code=102, headers=[], reason=b"Processing")
            self.transport.write(self.conn.send(event) or b"")
        self._probe_timer = self.loop.call_later(next_seconds, self._probe, PROBE_SECONDS[1])
