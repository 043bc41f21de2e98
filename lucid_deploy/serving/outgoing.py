"""What waits to be sent to a client: whether it reads, and how much of what it sends is taken in meanwhile."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from typing import Any

try:
    from fcntl import ioctl
    from termios import TIOCOUTQ
except ImportError:  # Windows: what the system holds is not known there
    ioctl = None  # type: ignore[assignment]

CHECK_SECONDS = 0.25  # between looks at whether a client reads


class Outgoing:
    """An asyncio transport that knows what its client has not taken yet, and can stop reading from it.

    Args:
        transport: The event loop's.
        on_waiting: Called when something could not be sent at once, and every so often until it is, and once after.
    """

    def __init__(self, transport: asyncio.Transport, on_waiting: Callable[[], None]) -> None:
        self._transport = transport
        self._on_waiting = on_waiting
        self._written = 0
        self._taken = 0  # bytes, at the latest progress
        self._progress = 0.0  # when it was, by time.monotonic
        self._behind = 0.0  # since when something waits
        self._timer: asyncio.TimerHandle | None = None
        self._wanted = True  # whether the protocol wants to read
        self._held = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @property
    def waiting(self) -> bool:
        """Whether something waits to be sent that the system did not take yet."""
        return bool(self._transport.get_write_buffer_size() > 0)

    @property
    def stalled_seconds(self) -> float:
        """Seconds since the client took anything; 0 if nothing waits."""
        return time.monotonic() - self._progress if self.waiting else 0.0

    @property
    def behind_seconds(self) -> float:
        """Seconds for which something has waited all the time."""
        return time.monotonic() - self._behind if self.waiting else 0.0

    def write(self, data: bytes) -> None:
        """Send, or keep until it can be sent; what comes after the client has gone is dropped without a warning."""
        if self._transport.is_closing():
            return
        self._written += len(data)
        self._transport.write(data)
        if self._timer is None and self.waiting:
            self._taken, self._behind = self._count_taken(), time.monotonic()
            self._progress = self._behind
            self._look_again()

    def pause_reading(self) -> None:
        """Stop reading; called by the protocol."""
        self._wanted = False
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again, unless it is held; called by the protocol."""
        self._wanted = True
        if not self._held:
            self._transport.resume_reading()

    def hold_reading(self, held: bool) -> None:
        """Read nothing, whatever the protocol wants, until told otherwise."""
        self._held = held
        if held:
            self._transport.pause_reading()
        elif self._wanted:
            self._transport.resume_reading()

    def stop_watching(self) -> None:
        """End the looks at the client; called when the connection is lost."""
        if self._timer is not None:
            self._timer.cancel()

    def _look_again(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CHECK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        taken = self._count_taken()
        if taken > self._taken:
            self._taken, self._progress = taken, time.monotonic()
        if self.waiting:
            self._look_again()
        self._on_waiting()

    def _count_taken(self) -> int:
        """Return how many bytes the client's system has confirmed, or where that is not known, this one has taken.

        This one takes up to megabytes at once, so a slow client seems to stand still by the other measure.
        """
        taken = self._written - self._transport.get_write_buffer_size()
        if ioctl is None:
            return taken
        try:
            unconfirmed = ioctl(self._transport.get_extra_info("socket").fileno(), TIOCOUTQ, bytes(4))
        except OSError:
            return taken
        return int(taken - struct.unpack("i", unconfirmed)[0])
