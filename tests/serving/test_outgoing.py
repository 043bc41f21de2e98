"""What waits to be sent: progress of a client that reads, and reading that is held."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import pytest

from lucid_deploy.serving.outgoing import Outgoing
from tests.patience import PATIENCE


async def connect(looks: list[float]) -> tuple[Outgoing, socket.socket]:
    """Return an end that notes stalled seconds at each look, and the client's."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    listener.close()
    server.setblocking(False)
    client.setblocking(False)
    made: list[Outgoing] = []
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(asyncio.Protocol, server)
    made.append(Outgoing(transport, lambda: looks.append(made[0].stalled_seconds)))
    return made[0], client


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def test_what_a_client_takes_is_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid_deploy.serving.outgoing.CHECK_SECONDS", 0.01)

    async def run() -> None:
        looks: list[float] = []
        outgoing, client = await connect(looks)
        outgoing.write(b"little")
        assert not outgoing.waiting
        outgoing.write(bytes(32 << 20))  # more than the system takes
        await until(lambda: looks and looks[-1] > 0.2)  # the client reads nothing
        seen = len(looks)
        client.recv(1 << 20)
        await until(lambda: min(looks[seen:], default=1.0) < 0.1)
        assert outgoing.behind_seconds > 0.2
        while outgoing.waiting:
            with contextlib.suppress(BlockingIOError):
                client.recv(1 << 20)
            await asyncio.sleep(0)
        await until(lambda: looks[-1] == 0.0)
        assert outgoing.behind_seconds == 0.0
        outgoing.abort()
        client.close()

    asyncio.run(run())


def test_held_reading_stays_held_until_let_go() -> None:
    async def run() -> None:
        outgoing, client = await connect([])
        outgoing.hold_reading(True)
        outgoing.resume_reading()  # as uvicorn does for each request's body
        assert not outgoing.is_reading()
        outgoing.hold_reading(False)
        assert outgoing.is_reading()
        outgoing.pause_reading()
        outgoing.hold_reading(False)
        assert not outgoing.is_reading()
        outgoing.abort()
        client.close()

    asyncio.run(run())


def test_what_a_client_that_has_gone_does_not_get_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio warned of each piece of an answer from the sixth on: "socket.send() raised exception"."""

    async def run() -> None:
        outgoing, client = await connect([])
        client.close()
        for _ in range(20):  # as the tokens of a step, between two turns of the loop
            outgoing.write(b"piece")
        assert outgoing.is_closing()

    asyncio.run(run())
    assert not caplog.records
