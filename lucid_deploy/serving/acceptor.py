"""Accepting connections: no more than there is room for, and none left without an answer at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.connections import RESERVE, ConnectionTable

log = logging.getLogger("lucid_deploy.serving")
OTHER_DESCRIPTORS = 200  # files, pipes and libraries
FAILED_SECONDS = 0.5  # after an attempt to accept that failed
LINGER_SECONDS = 1.0  # for clients that connected before the end to send their request


class Acceptor:
    """Takes connections from a listening socket; asyncio's own takes as many as come.

    Args:
        listener: The socket.
        table: The open connections.
        make: Returns the protocol of a connection, given whether it is one of the reserve.
    """

    def __init__(
        self, listener: socket.socket, table: ConnectionTable, make: Callable[[bool], asyncio.Protocol]
    ) -> None:
        self._listener = listener
        self._table = table
        self._make = make
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to accept, in the background."""
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Take what has connected already, stop listening, and let those who connected send their request."""
        self._closing.set()
        if self._task is not None:
            await self._task  # not cancelled: a connection that was just accepted would be lost
        with contextlib.suppress(OSError):  # nobody is left, or there are no descriptors
            while True:
                await self._serve(self._accept(), reserved=False)
        self._listener.close()
        loop = asyncio.get_running_loop()
        end = loop.time() + LINGER_SECONDS
        while not self._table.all_have_requests() and loop.time() < end:
            await asyncio.sleep(0.02)

    async def _run(self) -> None:
        while not self._closing.is_set():
            if not await self._table.room():
                continue
            try:
                connection = self._accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                await self._until_readable()
                continue
            except OSError as error:  # mostly: no descriptors are left
                log.error("No connection can be accepted: %s.", error.strerror or error)
                await asyncio.sleep(FAILED_SECONDS)
                continue
            await self._serve(connection, reserved=not self._table.admit())

    def _accept(self) -> socket.socket:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        return connection

    async def _until_readable(self) -> None:
        """Wait for a client that connects, or for the end."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._listener.fileno(), readable.set)
        waiting = [asyncio.ensure_future(event.wait()) for event in (readable, self._closing)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            loop.remove_reader(self._listener.fileno())
            for future in waiting:
                future.cancel()

    async def _serve(self, connection: socket.socket, reserved: bool) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self._make(reserved), connection)
        except OSError as error:  # gone already
            log.debug("A connection ended at once: %s", error)
            connection.close()


def reserve_descriptors(connections: int) -> None:
    """Raise this process's limit of open files so that so many connections fit.

    Raises:
        LucidError: The system does not allow as many.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    needed = connections + RESERVE + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LucidError(
            f"{connections} connections need {needed} open files and the limit is {hard}. Raise it (ulimit -n), or "
            "give fewer --max-connections."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
