"""Serve from one process: the model in a thread, the application under uvicorn, and a graceful shutdown."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any

import uvicorn

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.app import App
from lucid_deploy.serving.connections import Connection, ConnectionLimits
from lucid_deploy.serving.engine import Engine
from lucid_deploy.serving.front import Service

log = logging.getLogger("lucid_deploy.serving")
SPARE_CONNECTIONS = 100  # in addition to two for each generation that may run or wait
READ_AHEAD = 16  # requests that may be read while the queue is full
BACKLOG = 1024  # connections that may wait in the kernel to be accepted
ACCEPTED_AT_ONCE = 64  # per turn of the event loop; more could cut earlier connections before their requests are read
ACCEPT_SECONDS = 0.05  # at shutdown, to accept waiting connections before listeners close
LINGER_SECONDS = 1.0  # at shutdown, for connected clients to send a request and be answered
STEP_SECONDS = 5.0  # at shutdown, for the model's current step to end


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; raise a LucidError if the address cannot be used. Call it before loading the model."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        opened = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        remedy = "Choose another address of this machine with --host, or another port with --port (0: any free port)."
        raise LucidError(f"Port {port} on {host} cannot be used: {reason}. {remedy}") from error
    opened.setblocking(False)
    # Connections inherit TCP_NODELAY. asyncio sets it only for sockets made with proto=IPPROTO_TCP, and without it
    # Nagle's algorithm holds back the first token until the client's delayed acknowledgement, 40 ms later.
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


def handle_ends(handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Install a handler of SIGTERM, SIGINT and, unless ignored (as by nohup), SIGHUP; return the previous handlers."""
    numbers = [signal.SIGTERM, signal.SIGINT]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        numbers.append(hangup)
    return {number: signal.signal(number, handler) for number in numbers}


def set_up_logging(level: str) -> None:
    """Log to stderr at ``level``: methods and paths of requests, but no bodies or headers."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")  # libraries log warnings and errors only
    log.setLevel(level.upper())


async def serve(
    service: Service,
    engine: Engine,
    listener: socket.socket,
    ready: Callable[[], None],
    grace: float,
    connections: int | None = None,
    idle: float = 30.0,
) -> None:
    """Load the model, call ``ready``, serve until SIGTERM, SIGINT or SIGHUP, and let running requests finish.

    Running requests get ``grace`` seconds. At most ``connections`` are open (None: 100, and two per generation that may
    run or wait), each waiting ``idle`` seconds for its client. Raises the engine's error if the model cannot be loaded;
    ends the process with status 1 if the engine's thread does not stop within STEP_SECONDS.
    """
    limits = ConnectionLimits(connections or 2 * engine.capacity + SPARE_CONNECTIONS, idle)
    with suppress(ImportError, ValueError):  # allow as many open files as the system does; Windows has no such limit
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    service.most_busy = engine.capacity + READ_AHEAD
    server = DrainingServer(service, engine, limits, grace, ready)
    try:  # readers and the engine are always stopped, even if a signal interrupts the start
        await server.serve(sockets=[listener])
    finally:
        failed_to_load = engine.state == "dead" and not server.announced and not service.draining
        await asyncio.to_thread(service.readers.close)
        stopped = await asyncio.to_thread(engine.stop, STEP_SECONDS)
        if not stopped:  # a thread cannot be killed, and a normal exit would abort the process
            log.critical("The model still runs a step, or loads. The process ends without waiting for it.")
            logging.shutdown()
            sys.stdout.flush()
            os._exit(1)
    if failed_to_load and engine.error is not None:
        raise engine.error


class DrainingServer(uvicorn.Server):
    """uvicorn with bounded connections; after a signal, running requests finish and new ones get 503."""

    def __init__(
        self, service: Service, engine: Engine, limits: ConnectionLimits, grace: float, ready: Callable[[], None]
    ) -> None:
        protocol: Any = partial(Connection, limits)
        config = uvicorn.Config(
            App(service),
            http=protocol,
            loop="asyncio",
            backlog=ACCEPTED_AT_ONCE,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=math.ceil(limits.idle_seconds) + 1,  # later than Connection's own timer
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self.announced = False  # whether the model has loaded, and ``ready`` was called
        self._service, self._engine, self._limits = service, engine, limits
        self._grace, self._ready = grace, ready
        self._signals, self._deadline = 0, math.inf  # signals received; end of the grace period, by time.monotonic

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        handle_ends(self.handle_exit)  # SIGHUP, too
        self._engine.start()
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)
        await asyncio.to_thread(self._service.readers.start)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to shut down; called by uvicorn ten times a second."""
        await super().on_tick(counter)
        state, running = self._engine.state, self._service.busy.total()
        if not self.announced and state == "ready":
            self.announced = True
            self._ready()
        failed_to_load = not self.announced and state == "dead"
        if not self._signals or failed_to_load:
            return failed_to_load
        if self._signals == 1 and running and time.monotonic() < self._deadline:
            return False
        if running:
            log.warning("Ending %d requests.", running)
        self._service.ending.set_result(None)
        return True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let connected clients send a request and be answered, then close all connections."""
        for listener in sockets or ():
            listener.listen(0)  # closing a listener resets connections that wait in its backlog: let none wait
        await asyncio.sleep(ACCEPT_SECONDS)
        for server in self.servers:
            server.close()
        end = time.monotonic() + LINGER_SECONDS
        while time.monotonic() < end and not all(each.answered for each in self._limits.waiting):
            await asyncio.sleep(0.02)
        for connection in [each for each in self._limits.waiting if not each.answered]:
            connection.drop()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Let requests finish after the first signal; end at once after the second."""
        self._signals += 1
        if self._signals == 1:
            self._service.draining, self._deadline = True, time.monotonic() + self._grace
            running = self._service.busy.total()
            log.warning("Shutting down: %d requests may take %g s to finish.", running, self._grace)
