"""One process: the model in a thread, the application under uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import uvicorn

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.acceptor import Acceptor, reserve_descriptors
from lucid_deploy.serving.app import build_app
from lucid_deploy.serving.backend import LocalBackend
from lucid_deploy.serving.connections import Connection, ConnectionTable
from lucid_deploy.serving.service import Service

log = logging.getLogger("lucid_deploy.serving")
SPARE_CONNECTIONS = 100  # beyond twice the generations that run and wait


@dataclass
class ListenOptions:
    """Where the server listens, to how many, and how long it waits for them.

    Attributes:
        socket: Where.
        grace: Seconds that running requests get to finish when the server is told to end.
        connections: Most that are open; None: what the generations that run and wait need, and some to spare.
        idle: Seconds that a connection may be silent between requests.
    """

    socket: socket.socket
    grace: float
    connections: int | None = None
    idle: float = 30.0


def bind(host: str, port: int) -> socket.socket:
    """Open the socket before the model is loaded, so that a port in use shows at once.

    Raises:
        LucidError: The address or port cannot be used.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise LucidError(f"--host {host} is not an address of this machine: {error}.") from error
    family, kind, protocol, _, address = found[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(1024)  # connections wait here while the model loads
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
    """Serve until SIGTERM, SIGINT or SIGHUP, then let running requests finish.

    Args:
        make_service: Makes the application's state, in the event loop.
        listening: Where, and the time to finish.
        ready: Called once the model is loaded.

    Raises:
        LucidError: The model cannot be loaded.
    """
    asyncio.run(_serve(make_service, listening, ready))


async def _serve(
    make_service: Callable[[], tuple[Service, LocalBackend]], listening: ListenOptions, ready: Callable[[], None]
) -> None:
    service, backend = make_service()
    engine = backend.engine
    connections = listening.connections or 2 * engine.capacity + SPARE_CONNECTIONS
    reserve_descriptors(connections)
    server = DrainingServer(service, listening, ConnectionTable(connections))
    loop, loaded = asyncio.get_running_loop(), asyncio.Event()

    def when_loaded() -> None:
        loop.call_soon_threadsafe(loaded.set)

    async def announce() -> None:
        await loaded.wait()
        if engine.state != "ready":
            server.end()
            return
        await server.up.wait()  # a signal before that would end the process and not the server
        ready()

    announcing = asyncio.ensure_future(announce())
    try:
        engine.start(when_loaded)  # a signal may raise in it, and a thread that loads on keeps the process from ending
        await server.serve()
    finally:
        announcing.cancel()
        failed_to_load = engine.state == "dead" and not server.was_told_to_end
        await service.readers.close()
        await asyncio.to_thread(engine.stop)
        if service.tracing is not None:
            await asyncio.to_thread(service.tracing.close)
    if failed_to_load and engine.error is not None:
        raise engine.error


class DrainingServer(uvicorn.Server):
    """uvicorn, except that connections are bounded and a signal first lets requests finish; new ones are told 503.

    Attributes:
        up: Set once connections are accepted and signals are heard.

    Args:
        service: The application's state.
        listening: Where and how.
        table: The open connections.
    """

    def __init__(self, service: Service, listening: ListenOptions, table: ConnectionTable) -> None:
        config = uvicorn.Config(
            build_app(service),
            http="h11",  # the other one takes headers of any size
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(listening.idle),
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self.up = asyncio.Event()
        self._service = service
        self._grace = listening.grace
        self._idle = listening.idle
        self._table = table
        self._acceptor = Acceptor(listening.socket, table, self._connection)
        self._drain: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def was_told_to_end(self) -> bool:
        """Whether a signal asked for the end, rather than a model that cannot be loaded."""
        return self._drain is not None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections and to read bodies; called by uvicorn.

        Raises:
            LucidError: The tokenizer or the chat template cannot be read.
        """
        await self.lifespan.startup()
        self.servers = []  # asyncio's, of which there is none
        self._acceptor.start()
        self.started = True
        await self._service.readers.start()
        self.up.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer those who have connected, then close; called by uvicorn."""
        await self._acceptor.close()
        await super().shutdown()

    def end(self) -> None:
        """Stop at once."""
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hear signals while the server runs: uvicorn's, and that of a terminal that closes."""
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

    def _connection(self, reserved: bool) -> Connection:
        shared = {"config": self.config, "server_state": self.server_state}
        return Connection(self._table, reserved, self._idle, self._service.settings.limits.seconds, **shared)

    def _on_signal(self) -> None:
        if self._drain is not None:
            self._service.ending.set()
            self.should_exit = True
            return
        self._service.draining = True
        self._drain = asyncio.ensure_future(self._drained())

    async def _drained(self) -> None:
        if self._service.busy:
            log.warning("Shutting down: %d requests may take %g s to finish.", self._service.busy, self._grace)
        else:
            log.info("Shutting down: no request is running.")
        end = self._loop.time() + self._grace
        while self._service.busy and self._loop.time() < end:
            await asyncio.sleep(0.02)
        if self._service.busy:
            log.warning("Ending %d requests.", self._service.busy)
        self._service.ending.set()
        await asyncio.sleep(0)
        self.should_exit = True
