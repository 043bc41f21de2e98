"""Connections that are many, silent, half closed or no HTTP, against a whole server."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from lucid_deploy.serving.connections import RESERVE, ConnectionTable
from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, PROMPT, Server, Start

MOST = 20


@pytest.fixture(scope="module")
def small(artifacts: dict[str, Path]) -> Iterator[Server]:
    """A server with room for few connections, which may be silent for a second."""
    words = ["serve", str(artifacts["growing"]), "--port", "0", "--served-model-name", MODEL]
    running = Server(["-m", "lucid_deploy.cli", *words, "--max-connections", str(MOST), "--idle-timeout", "1"])
    yield running
    assert running.stop() == 0
    assert not any("Traceback" in line for line in running.errors)


def ask(server: Server, **more: Any) -> httpx.Response:
    body = {"model": MODEL, "prompt": PROMPT, "temperature": 0, **more}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)


def request(**more: Any) -> bytes:
    body = json.dumps({"model": MODEL, "prompt": PROMPT, "temperature": 0, **more}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def talk(server: Server, data: bytes, half_close: bool = False) -> bytes:
    """Send bytes; return what comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(data)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        out = b""
        while part := connection.recv(65536):
            out += part
        return out


def descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def error_of(answer: bytes) -> dict[str, Any]:
    """Return an error that came as bytes; its shape is that of all errors."""
    error = json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def test_silent_connections_make_room(small: Server) -> None:
    """Fifteen times as many as there is room for: others are answered, and no more are open than said."""
    before = descriptors(small)
    with ExitStack() as stack:
        for _ in range(15 * MOST):
            stack.enter_context(socket.create_connection(("127.0.0.1", small.port)))
        assert httpx.get(f"{small.url}/healthz", timeout=PATIENCE).status_code == 200
        assert ask(small).json()["choices"][0]["text"] == "blue cup"
        assert descriptors(small) <= before + MOST + RESERVE + 5


def test_silent_connections_are_closed_after_a_time(small: Server) -> None:
    assert talk(small, b"") == b""
    answer = talk(small, b"GET /healthz HTTP/1.1\r\nHost: local")  # a head that does not end
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert error_of(answer)["code"] == "timeout"
    kept = talk(small, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")  # one that is kept alive
    assert kept.endswith(b'{"status":"ok"}')


def test_what_is_no_http_gets_an_error_of_the_same_shape(small: Server) -> None:
    for data in (b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/1.1\r\nX y\r\n\r\n"):
        answer = talk(small, data)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert error_of(answer)["code"] == "invalid_request"


def test_no_http_after_a_request_ends_the_connection(small: Server) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert error_of(talk(small, head + b"ZZ\r\n"))["code"] == "invalid_request"
    talk(small, request(stream=True) + b"\x00\x01\x02\r\n\r\n")
    assert ask(small).status_code == 200


@pytest.mark.parametrize("wanted", ["h2c", "websocket"])
def test_an_upgrade_that_is_asked_for_is_passed_over_in_silence(small: Server, wanted: str) -> None:
    before = len(small.errors)
    head = f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: {wanted}\r\n\r\n"
    assert talk(small, head.encode()).startswith(b"HTTP/1.1 200 OK")
    assert not [line for line in small.errors[before:] if "WARNING" in line]


def test_two_lengths_of_a_body_are_refused(small: Server) -> None:
    """Where a proxy takes the one and a server the other, the end of the body is a request that nobody checked."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = talk(small, head + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert "not both" in error_of(answer)["message"]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("stream", [False, True])
def test_half_closed_clients_get_their_answer(small: Server, version: str, stream: bool) -> None:
    data = request(stream=stream, max_tokens=20, ignore_eos=True).replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    answer = talk(small, data, half_close=True)
    assert b" 200 OK\r\n" in answer
    assert answer.endswith(b"data: [DONE]\n\n" if stream and version == "1.0" else b"\r\n\r\n" if stream else b"}")
    assert (b"102 Processing" in answer) <= (version == "1.1")


def test_a_half_sent_body_is_no_request(small: Server) -> None:
    assert talk(small, request()[:-5], half_close=True) == b""


def test_repeated_errors_fill_no_log(small: Server) -> None:
    before = len(small.errors)
    for _ in range(300):
        talk(small, b"hello\r\n\r\n")
    assert len(small.errors) - before < 30


def test_health_checks_have_a_reserve(start: Start, artifacts: dict[str, Path]) -> None:
    server = start(artifacts["growing"], "--rows", 1, "--max-connections", 4, "--max-queue", 20, slow=0.05)
    with ExitStack() as stack:
        for _ in range(4):
            busy = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            busy.sendall(request(max_tokens=400, ignore_eos=True))
        while "lucid_active_rows 1.0" not in httpx.get(f"{server.url}/metrics").text:
            time.sleep(0.05)
            if ask(server, max_tokens=1).status_code == 503:
                break
        for _ in range(3):
            assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok"}
        answer = ask(server)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "too_many_connections")
        assert answer.headers["Retry-After"] == "5"


def test_more_connections_than_the_system_allows_are_refused(artifacts: dict[str, Path]) -> None:
    code = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (400, 400));"
    code += "from lucid_deploy.cli import main; main()"
    words = ["serve", str(artifacts["growing"]), "--port", "0", "--max-connections", "1000"]
    command = [sys.executable, "-c", code, *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert result.returncode == 2
    assert "1000 connections need 1216 open files and the limit is 400" in result.stderr
    assert result.stderr.count("\n") == 2  # with "Loading"


OPENAPI = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"


def deaf(server: Server, data: bytes = b"") -> socket.socket:
    """Return a connection that takes little, to which the server can send only slowly."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(data)
    return connection


def wait_for_descriptors(server: Server, least: int, most: int) -> None:
    """Wait until so many are open."""
    end = time.monotonic() + PATIENCE
    while not least <= descriptors(server) <= most:
        assert time.monotonic() < end, "connections are not closed"
        time.sleep(0.05)


def test_unread_answers_count_among_the_connections(small: Server) -> None:
    """More than there is room for ask and never read: no more descriptors than said, and none in the end."""
    before = descriptors(small)
    with ExitStack() as stack:
        for _ in range(3 * MOST):
            stack.enter_context(deaf(small, 4 * OPENAPI))
            time.sleep(0.12)  # a silent connection makes room after a tenth of a second
            assert descriptors(small) <= before + MOST + RESERVE + 5
        assert httpx.get(f"{small.url}/healthz", timeout=PATIENCE).status_code == 200
        wait_for_descriptors(small, 0, before + 2)
        assert ask(small).json()["choices"][0]["text"] == "blue cup"
        assert any("took nothing of its answer for 1 s" in line for line in small.errors)


def test_clients_that_do_not_read_lose_their_places(small: Server) -> None:
    """Every place is held by a client with hundreds of requests and a full buffer."""
    before = descriptors(small)
    with ExitStack() as stack:
        for _ in range(MOST):
            stack.enter_context(deaf(small, 400 * OPENAPI))
        wait_for_descriptors(small, before + MOST - 2, before + MOST + RESERVE)
        wait_for_descriptors(small, 0, before + 2)
        assert ask(small).status_code == 200


def test_a_slow_reader_is_not_cut(small: Server) -> None:
    """It takes a little at a time, for longer altogether than a connection may stand still."""
    end = time.monotonic() + PATIENCE
    out, longest = read_slowly(small)
    while longest > 0.5 and time.monotonic() < end:  # this process stood still itself: the server may have cut it
        out, longest = read_slowly(small)
    assert out.count(b"HTTP/1.1 200 OK") == 8
    assert out.endswith(b"}")


def read_slowly(server: Server) -> tuple[bytes, float]:
    """Return what comes of eight answers that are read bit by bit, and the longest time in which nothing was read."""
    last = OPENAPI.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    out, reads, longest, before = b"", 0, 0.0, time.monotonic()
    with deaf(server, 7 * OPENAPI + last) as connection, suppress(ConnectionResetError):
        part = b"first"
        while part:
            if reads < 20:
                time.sleep(0.15)
            part = connection.recv(4096 if reads < 20 else 65536)
            longest, before = max(longest, time.monotonic() - before), time.monotonic()
            out, reads = out + part, reads + 1
    return out, longest


def test_many_pipelined_requests_are_all_answered(small: Server) -> None:
    """More than the server takes in at once."""
    get = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 4000 + b"\r\n\r\n"
    answer = talk(small, 100 * get)
    assert answer.count(b"HTTP/1.1 200 OK") == 100


class SilentConnection:
    """Stands for a connection in the table."""

    answered = True

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


def test_the_oldest_silent_connection_makes_room_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("lucid_deploy.serving.connections.time.monotonic", lambda: now)
    table = ConnectionTable(most=3, reserve=1)
    connections: list[Any] = [SilentConnection() for _ in range(3)]
    for connection in connections:
        now += 1.0
        table.note(connection, silent=True)
    table.note(connections[0], silent=False)
    assert table.admit()
    assert [connection.closed for connection in connections] == [False, True, False]
    assert len(table) == 3
    table.forget(connections[1])  # only now, as its descriptor was open until then
    table.note(connections[2], silent=False)
    table.note(SilentConnection(), silent=False)  # type: ignore[arg-type]
    assert not table.admit()  # all have requests: this one is of the reserve
    table.forget(connections[2])
    assert table.admit()
    assert len(table) == 2
