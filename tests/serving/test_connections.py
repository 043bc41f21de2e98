"""Connections of a server: which one makes room for a new one, which are cut, and which are answered at the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn

from lucid_deploy.serving.connections import Connection, ConnectionLimits
from lucid_deploy.serving.server import DrainingServer, bind
from tests.patience import PATIENCE
from tests.serving.stand_ins import ScriptedBackend, service

Open = Callable[[bytes], Awaitable[asyncio.StreamReader]]
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
VERSION = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def server(limits: ConnectionLimits, released: asyncio.Event) -> AsyncIterator[Open]:
    """Yield a function that connects and sends bytes; requests are answered when ``released`` is set."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        await released.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    protocol: Any = partial(Connection, limits)
    config = uvicorn.Config(app, http=protocol, lifespan="off", ws="none", log_config=None, host="127.0.0.1", port=0)
    config.load()
    running = uvicorn.Server(config)
    running.lifespan = config.lifespan_class(config)
    await running.startup()
    port = running.servers[0].sockets[0].getsockname()[1]
    writers = []

    async def connect(data: bytes) -> asyncio.StreamReader:
        before = len(limits.waiting), len(running.server_state.tasks)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)  # or it would be closed
        writer.write(data)
        for _ in range(20):
            await asyncio.sleep(0.01)
            if (len(limits.waiting), len(running.server_state.tasks)) != before:
                break
        return reader

    yield connect
    running.servers[0].close()
    for writer in writers:
        writer.close()
    await asyncio.sleep(0)


def run(test: Callable[[Open, ConnectionLimits, asyncio.Event], Awaitable[None]], most: int, idle: float = 60) -> None:
    async def go() -> None:
        limits, released = ConnectionLimits(most, idle), asyncio.Event()
        async with asyncio.timeout(PATIENCE), server(limits, released) as connect:
            await test(connect, limits, released)

    asyncio.run(go())


def test_the_connection_that_waits_longest_makes_room() -> None:
    async def test(connect: Open, limits: ConnectionLimits, released: asyncio.Event) -> None:
        busy = await connect(GET)
        silent = await connect(b"")
        slow = await connect(POST + b"1\r\n")
        second = await connect(GET)
        assert await silent.read() == b"" and not slow.at_eof()
        third = await connect(GET)
        assert await slow.read() == b""
        assert await (await connect(GET)).read() == b""
        released.set()
        for reader in (busy, second, third):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")

    run(test, most=3)


@pytest.mark.parametrize("sent", [b"", GET[:10], POST + b"5\r\nab"])
def test_a_client_that_sends_no_request_in_time_is_cut(sent: bytes) -> None:
    async def test(connect: Open, limits: ConnectionLimits, released: asyncio.Event) -> None:
        busy = await connect(GET)
        assert await (await connect(sent)).read() == b""
        await asyncio.sleep(0.3)
        assert len(limits.waiting) == 0
        released.set()
        assert (await busy.readline()).startswith(b"HTTP/1.1 200")
        assert (await busy.read()).endswith(b"\r\n\r\n")  # and the connection is cut when it is silent afterwards

    run(test, most=9, idle=0.1)


def test_tokens_do_not_wait_for_acknowledgements() -> None:
    """Nagle's algorithm would hold back the second chunk of an answer on a connection that is kept."""
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted = listener.accept()[0]
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("answered", [False, True])
def test_a_client_that_still_sends_at_shutdown_is_answered(answered: bool, tmp_path: Path) -> None:
    async def go() -> None:
        limits, backend = ConnectionLimits(9, 60), ScriptedBackend()
        ending = DrainingServer(service(tmp_path, backend), cast(Any, backend), limits, 0, lambda: None)
        ending.config.load()
        ending.lifespan = ending.config.lifespan_class(ending.config)
        with bind("127.0.0.1", 0) as listener:
            await uvicorn.Server.startup(ending, [listener])
            reader, writer = await asyncio.open_connection(*listener.getsockname())
            if answered:
                writer.write(VERSION)
                await reader.readuntil(b"}")
            writer.write(VERSION[:20])
            await asyncio.sleep(0.1)
            stopping = asyncio.ensure_future(ending.shutdown([listener]))
            await asyncio.sleep(0.3)
            writer.write(VERSION[20:])
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            await stopping

    asyncio.run(go())


@pytest.mark.parametrize(
    "sent",
    [GET[:-2] + b"A: " + b"a" * 70_000, POST + b"1\r\nx\r\n" * 50_000, POST + b"0\r\n" + b"A: a\r\n" * 20_000],
)
def test_connections_with_endless_heads_chunks_or_trailers_are_cut(sent: bytes) -> None:
    async def test(connect: Open, limits: ConnectionLimits, released: asyncio.Event) -> None:
        with suppress(ConnectionResetError):
            assert await (await connect(sent)).read() == b""

    run(test, most=9)
