"""One process: the model in a thread, the application under uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.app import build_app
from lucid_deploy.serving.backend import LocalBackend
from lucid_deploy.serving.service import Service

log = logging.getLogger("lucid_deploy.serving")
SPARE_CONNECTIONS = 100  # beyond the generations that run and wait: for health checks, metrics and refusals


@dataclass
class ListenOptions:
    """Where the server listens, and how long it lets requests finish when it is told to end."""

    socket: socket.socket
    grace: float


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


def serve(
    make_service: Callable[[], tuple[Service, LocalBackend]], listening: ListenOptions, ready: Callable[[], None]
) -> None:
    """Serve until SIGTERM or SIGINT, then let running requests finish.

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
    server = _Server(service, engine.capacity, listening.grace)
    loop = asyncio.get_running_loop()

    def when_loaded() -> None:
        if engine.state == "ready":
            ready()
        else:
            loop.call_soon_threadsafe(server.end)

    engine.start(when_loaded)
    try:
        await service.readers.start()
        await server.serve([listening.socket])
    finally:
        failed_to_load = engine.state == "dead" and not server.was_ready
        await service.readers.close()
        await asyncio.to_thread(engine.stop)
    if failed_to_load and engine.error is not None:
        raise engine.error


class _Server(uvicorn.Server):
    """uvicorn, except that a signal first lets requests finish while new ones are told 503."""

    def __init__(self, service: Service, capacity: int, grace: float) -> None:
        config = uvicorn.Config(
            build_app(service),
            http="h11",  # the other one takes headers of any size
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            limit_concurrency=2 * capacity + SPARE_CONNECTIONS,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self._service = service
        self._grace = grace
        self._drain: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def was_ready(self) -> bool:
        """Whether the end was asked for, rather than forced by a model that cannot be loaded."""
        return self._drain is not None

    def end(self) -> None:
        """Stop at once."""
        self.should_exit = True

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
        log.warning("Shutting down: %d requests may take %g s to finish.", self._service.busy, self._grace)
        end = self._loop.time() + self._grace
        while self._service.busy and self._loop.time() < end:
            await asyncio.sleep(0.02)
        if self._service.busy:
            log.warning("Ending %d requests.", self._service.busy)
        self._service.ending.set()
        await asyncio.sleep(0)
        self.should_exit = True


def set_up_logging(level: str) -> None:
    """Log to stderr, one line an event, without anything that a request contains beyond its path."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, at_least in (("lucid_deploy.serving", level.upper()), ("uvicorn", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(at_least)
        logger.propagate = False
