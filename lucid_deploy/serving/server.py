"""One process: the model in a thread, the application under uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.app import build_app
from lucid_deploy.serving.connections import Connection, ConnectionTable
from lucid_deploy.serving.front import Service
from lucid_deploy.serving.jobs import LocalBackend

log = logging.getLogger("lucid_deploy.serving")
SPARE_CONNECTIONS = 100  # beyond twice the generations that run and wait
READ_AHEAD = 16  # requests that may be read while the queue is full
BACKLOG = 1024  # connections that wait in the system
ACCEPTED_AT_ONCE = 64  # then what they sent is read, so that whole requests count as such
OTHER_DESCRIPTORS = ACCEPTED_AT_ONCE + 200  # files, pipes and libraries
LINGER_SECONDS = 1.0  # for clients that connected before the end to send their request
STEP_SECONDS = 5.0  # for the step that runs at the end


@dataclass
class ListenOptions:
    """Where the server listens, to how many, and how long it waits for them."""

    socket: socket.socket  # where
    grace: float  # seconds that running requests get to finish after a signal
    connections: int | None = None  # most that are open; None: by how many generations run and wait
    idle: float = 30.0  # seconds that a connection may be silent between requests


def bind(host: str, port: int) -> socket.socket:
    """Open the socket before the model is loaded, so that a port in use shows at once."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise LucidError(f"--host {host} is not an address of this machine: {error}.") from error
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
    except OSError as error:
        opened.close()
        raise LucidError(
            f"Port {port} on {host} cannot be used: {error.strerror}. Choose another with --port, or 0 for a free one."
        ) from error
    opened.setblocking(False)
    return opened


def hangup() -> list[int]:
    """Return SIGHUP, unless it is ignored (nohup) or the system has none (Windows)."""
    number = getattr(signal, "SIGHUP", None)
    return [] if number is None or signal.getsignal(number) is signal.SIG_IGN else [number]


def serve(
    make_service: Callable[[], tuple[Service, LocalBackend]], listening: ListenOptions, ready: Callable[[], None]
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then let running requests finish; ``make_service`` needs an event loop."""
    asyncio.run(_serve(make_service, listening, ready))


async def _serve(
    make_service: Callable[[], tuple[Service, LocalBackend]], listening: ListenOptions, ready: Callable[[], None]
) -> None:
    service, backend = make_service()
    engine = backend.engine
    connections = listening.connections or 2 * engine.capacity + SPARE_CONNECTIONS
    reserve_descriptors(connections)
    service.most_busy = engine.capacity + READ_AHEAD
    server = DrainingServer(service, listening, ConnectionTable(connections))
    loop, loaded = asyncio.get_running_loop(), asyncio.Event()

    def when_loaded() -> None:
        loop.call_soon_threadsafe(loaded.set)

    async def announce() -> None:
        await loaded.wait()
        if engine.state != "ready":
            server.should_exit = True
            return
        await server.up.wait()  # a signal before that would end the process and not the server
        ready()

    announcing = asyncio.ensure_future(announce())
    try:
        engine.start(when_loaded)  # a signal may raise in it, and a thread that loads on keeps the process from ending
        await server.serve(sockets=[listening.socket])
    finally:
        announcing.cancel()
        failed_to_load = engine.state == "dead" and not server.got_signal
        await service.readers.close()
        stopped = await asyncio.to_thread(engine.stop, STEP_SECONDS)
        if service.tracing is not None:
            await asyncio.to_thread(service.tracing.close)
        if not stopped:
            _end_process()
    if failed_to_load and engine.error is not None:
        raise engine.error


def _end_process() -> None:
    """End the process although a step of the model runs: its thread cannot be stopped, and a normal end would abort."""
    log.critical("The model still runs a step, or loads. The process ends without waiting for it.")
    logging.shutdown()
    sys.stdout.flush()
    os._exit(1)


def reserve_descriptors(connections: int) -> None:
    """Raise this process's limit of open files so that so many connections fit."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    needed = connections + OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise LucidError(
            f"{connections} connections need {needed} open files and the limit is {hard}. Raise it (ulimit -n), or "
            "give fewer --max-connections."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class DrainingServer(uvicorn.Server):
    """uvicorn with bounded connections; after a signal, running requests finish and new ones get 503."""

    def __init__(self, service: Service, listening: ListenOptions, table: ConnectionTable) -> None:
        protocol: Any = partial(Connection, table, listening.idle)
        config = uvicorn.Config(
            build_app(service),
            http=protocol,
            loop="asyncio",
            backlog=ACCEPTED_AT_ONCE,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(listening.idle) + 1,  # Connection's own timer comes first
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self.up = asyncio.Event()  # set once connections are accepted and signals are handled
        self._service, self._grace, self._table = service, listening.grace, table
        self._drain: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def got_signal(self) -> bool:
        """Whether the server ends because of a signal."""
        return self._drain is not None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections and to read bodies."""
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)
        await self._service.readers.start()
        self.up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let those who have connected send their request and be answered, then close."""
        for server in self.servers:
            server.close()
        end = self._loop.time() + LINGER_SECONDS
        while self._loop.time() < end and not all(each.answered for each in self._table.waiting):
            await asyncio.sleep(0.02)
        for connection in self._table.waiting:
            connection.close()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while the server runs: uvicorn's, and that of a terminal that closes."""
        with super().capture_signals():
            before = {number: signal.signal(number, self.handle_exit) for number in hangup()}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the end at the first signal; end at once at the second."""
        self._loop.call_soon_threadsafe(self._on_signal)

    def _on_signal(self) -> None:
        if self._drain is not None:
            self._service.ending.set()
            self.should_exit = True
            return
        self._service.draining = True
        self._drain = asyncio.ensure_future(self._drained())

    async def _drained(self) -> None:
        if self._service.busy.total():
            log.warning("Shutting down: %d requests may take %g s to finish.", self._service.busy.total(), self._grace)
        else:
            log.info("Shutting down: no request is running.")
        end = self._loop.time() + self._grace
        while self._service.busy.total() and self._loop.time() < end:
            await asyncio.sleep(0.02)
        if self._service.busy.total():
            log.warning("Ending %d requests.", self._service.busy.total())
        self._service.ending.set()
        await asyncio.sleep(0)
        self.should_exit = True
