"""Accepting: nobody who connected is left without an answer at the end, and failures neither end it nor fill a log."""

from __future__ import annotations

import asyncio
import collections
import errno
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.acceptor import Acceptor, reserve_descriptors
from lucid_deploy.serving.connections import ConnectionTable
from tests.patience import PATIENCE
from tests.serving.serving_tools import Start

GET = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def test_a_burst_before_the_end_is_answered(start: Start, artifacts: dict[str, Path]) -> None:
    """Four hundred connect and ask, and the server is told to end: none of them is reset."""
    server = start(artifacts["growing"])
    connections = []
    for _ in range(400):
        connections.append(socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE))
        connections[-1].sendall(GET)
    server.process.send_signal(signal.SIGTERM)
    answers: collections.Counter[str] = collections.Counter()
    for connection in connections:
        with connection:
            try:
                answers[connection.recv(65536)[:12].decode()] += 1
            except ConnectionError as error:
                answers[type(error).__name__] += 1
    assert server.process.wait(60) == 0
    assert set(answers) <= {"HTTP/1.1 200", "HTTP/1.1 503"}


class Echo(asyncio.Protocol):
    """Answers whatever comes, and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.close()


class Listener:
    """A socket whose accept fails a few times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.socket.setblocking(False)

    def accept(self) -> Any:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return self.socket.accept()

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()


def test_without_descriptors_it_waits_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("lucid_deploy.serving.acceptor.FAILED_SECONDS", 0.01)
    listener: Any = Listener(failures=3)

    async def run() -> bytes:
        acceptor = Acceptor(listener, ConnectionTable(10), lambda _reserved: Echo())
        acceptor.start()
        reader, writer = await asyncio.open_connection(*listener.socket.getsockname())
        writer.write(b"hello")
        answer = await reader.read()
        writer.close()
        await acceptor.close()
        return answer

    with caplog.at_level(logging.ERROR, "lucid_deploy.serving"):
        assert asyncio.run(run()) == b"hello"
    assert [record.getMessage() for record in caplog.records] == [
        "No connection can be accepted: Too many open files."
    ] * 3
    assert listener.fileno() == -1


def test_descriptors_are_reserved_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 2000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    reserve_descriptors(10)
    assert set_to == []
    reserve_descriptors(1000)
    assert set_to == [(1216, 2000)]
    with pytest.raises(LucidError, match="5000 connections need 5216 open files and the limit is 2000"):
        reserve_descriptors(5000)
