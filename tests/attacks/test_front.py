"""Attacks on the server over HTTP: during each, health and another client's first token come within a second."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.attacks.attack_tools import (
    ATTACKER,
    KEY,
    OtherClient,
    completion,
    connect,
    error_of,
    head,
    many,
    send_slowly,
    talk,
)
from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, PROMPT, Server

JSON = {"content_type": "application/json"}
DIRECT = pytest.mark.skipif("LUCID_ATTACKS_NGINX" in os.environ, reason="nginx answers by itself")
MOST = 2 * (8 + 64) + 100  # connections of a server with default options


def test_a_body_in_chunks_of_one_byte_delays_nobody_else(target: Server) -> None:
    with OtherClient(target):
        for _ in range(3):
            first = head(transfer_encoding="chunked", connection="close", **JSON)
            answer = talk(target, first + b"1\r\nx\r\n" * 1_283_333 + b"0\r\n\r\n")
            assert not answer or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 401"))


def test_hundreds_of_slow_bodies_delay_nobody_else(target: Server) -> None:
    with OtherClient(target), many(target, 300, head(content_length=100_000, **JSON) + b"{") as connections:
        send_slowly(connections, b" ", 2.0)


def test_hundreds_of_heads_that_do_not_end_delay_nobody_else(open_server: Server) -> None:
    with (
        OtherClient(open_server),
        many(open_server, 300, b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nA: ") as connections,
    ):
        send_slowly(connections, b"b", 1.0)


def test_hundreds_of_silent_connections_delay_nobody_else_and_are_closed(open_server: Server) -> None:
    before = _descriptors(open_server)
    with OtherClient(open_server), many(open_server, 600, b""):
        _wait_for_descriptors(open_server, before + MOST + 5)
    _wait_for_descriptors(open_server, before + 5)


def test_heads_and_trailers_without_end_are_refused(open_server: Server) -> None:
    with OtherClient(open_server):
        line = b"X: " + b"a" * 1000 + b"\r\n"
        for many_bytes in (b"X: " + b"a" * 10_000_000, line * 5000):
            answer = talk(open_server, b"GET / HTTP/1.1\r\nHost: x\r\n" + many_bytes)
            assert not answer or answer.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))  # nginx says 400
        answer = talk(open_server, head(transfer_encoding="chunked", **JSON) + b"2\r\n{}\r\n0\r\n" + line * 5000)
        assert not answer or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 401"))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_400_megabytes_is_refused_and_does_not_fill_memory(target: Server, chunked: bool) -> None:
    part = b" " * (1 << 20)
    with OtherClient(target), socket.create_connection(("127.0.0.1", target.port), timeout=PATIENCE) as connection:
        length = {"transfer_encoding": "chunked"} if chunked else {"content_length": 400 << 20}
        connection.sendall(head(**length, **JSON))
        try:
            for _ in range(400):
                connection.sendall(b"100000\r\n" + part + b"\r\n" if chunked else part)
        except OSError:
            pass
        try:
            answer = connection.recv(4096)
        except OSError:
            return
        assert answer.startswith((b"HTTP/1.1 413", b"HTTP/1.1 401"))
    assert _memory(target) < 1500 << 20


def test_connections_whose_answers_nobody_reads_are_closed(open_server: Server) -> None:
    before = _descriptors(open_server)
    request = head("/openapi.json", "GET", authorization=f"Bearer {KEY}")
    with OtherClient(open_server):
        deaf = []
        for _ in range(60):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            connection.connect(("127.0.0.1", open_server.port))
            connection.sendall(10 * request)
            deaf.append(connection)
        _wait_for_descriptors(open_server, before + 5)  # cut after --idle-timeout
        for connection in deaf:
            connection.close()


@DIRECT
def test_thousands_of_pipelined_requests_delay_nobody_else(open_server: Server) -> None:
    with OtherClient(open_server), many(open_server, 100, b"GET /healthz HTTP/1.1\r\n\r\n" * 5000):
        time.sleep(1.0)
    few = head("/healthz", "GET") * 5 + head("/healthz", "GET", connection="close")
    assert talk(open_server, few).count(b"HTTP/1.1 200 OK") == 6


def test_one_request_cannot_take_all_rows_and_the_queue(open_server: Server) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": MODEL, "prompt": PROMPT, "n": 72, "logprobs": 20, "max_tokens": 400, "ignore_eos": True}
    with OtherClient(open_server):
        answer = httpx.post(f"{open_server.url}/v1/completions", json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
        assert "1 to 7" in answer.json()["error"]["message"]
        prompts = {**body, "n": 2, "prompt": [PROMPT] * 4}
        answer = httpx.post(f"{open_server.url}/v1/completions", json=prompts, headers=headers)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")
        most = {**body, "n": 7, "max_tokens": 100}
        answer = httpx.post(f"{open_server.url}/v1/completions", json=most, headers=headers, timeout=PATIENCE)
        assert [len(choice["logprobs"]["tokens"]) for choice in answer.json()["choices"]] == [100] * 7


def test_expressions_that_take_long_to_compile_delay_nobody_else(open_server: Server) -> None:
    form = "(owl |has |" + "|".join(f"[a-z]{{1,{i}}}x" for i in range(1, 300)) + ")*"
    with OtherClient(open_server), many(open_server, 24, completion(guided_regex=form, max_tokens=1)) as connections:
        for connection in connections:
            assert connection.recv(4096).startswith((b"HTTP/1.1 200", b"HTTP/1.1 429"))


def test_bodies_that_are_costly_to_read_delay_nobody_else(keyed_server: Server) -> None:
    """Many such bodies of another key, and of clients that leave before their bodies are read."""
    request = completion(ATTACKER, bad_words=["owl has red lamp"] * 1000, max_tokens=1)
    with OtherClient(keyed_server):
        with many(keyed_server, 40, request):
            time.sleep(2.0)
        for _ in range(20):
            with connect(keyed_server, request):
                time.sleep(0.05)


@DIRECT
@pytest.mark.parametrize(
    "data",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nX y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n X: folded\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        head(content_length="5", transfer_encoding="chunked") + b"0\r\n\r\n",
        head(transfer_encoding="chunked, identity") + b"0\r\n\r\n",
        head(transfer_encoding="xchunked") + b"0\r\n\r\n",
        head(transfer_encoding="gzip, chunked") + b"0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nHost: b\r\nContent-Length: 2\r\n\r\n{}",
        head(content_length="+5") + b"12345",
        head(content_length="5, 5") + b"12345",
        head(content_length="-1"),
        head(content_length="99999999999999999999999"),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n12",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        head(transfer_encoding="chunked") + b"ZZ\r\n",
        head(transfer_encoding="chunked", expect="100-continue", **JSON) + b"ZZ\r\n",
        head(transfer_encoding="chunked") + b"-1\r\nx\r\n0\r\n\r\n",
        head(transfer_encoding="chunked") + b"2\r\nxyz\r\n0\r\n\r\n",
    ],
)
def test_invalid_or_ambiguous_http_is_refused(open_server: Server, data: bytes) -> None:
    """A proxy and this server may never see different requests in the same bytes."""
    answer = talk(open_server, data + head("/v1/models", "GET"))
    assert answer.count(b"HTTP/1.1 ") == 1 and answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), answer
    if not answer.endswith(b"Invalid HTTP request received."):  # as uvicorn says
        assert error_of(answer)["code"] in ("invalid_request", "invalid_api_key", "unsupported_media_type")


@DIRECT
def test_silent_connections_are_closed(open_server: Server) -> None:
    assert talk(open_server, b"") == b""
    assert talk(open_server, b"GET /healthz HTTP/1.1\r\nHost: local") == b""
    assert talk(open_server, head("/healthz", "GET")).endswith(b'{"status":"ok"}')


def receive_until(connection: socket.socket, end: bytes) -> bytes:
    """Read an answer up to ``end``; its head and body may arrive in separate pieces."""
    answer = b""
    while not answer.endswith(end):
        piece = connection.recv(4096)
        assert piece, answer
        answer += piece
    return answer


@DIRECT
@pytest.mark.parametrize("wanted", ["h2c", "websocket"])
def test_upgrade_requests_are_ignored_without_a_warning(open_server: Server, wanted: str) -> None:
    before = len(open_server.errors)
    with connect(open_server, head("/healthz", "GET", connection="Upgrade", upgrade=wanted)) as connection:
        assert receive_until(connection, b'{"status":"ok"}').startswith(b"HTTP/1.1 200 OK")
        connection.sendall(head("/healthz", "GET"))
        assert receive_until(connection, b'{"status":"ok"}').startswith(b"HTTP/1.1 200 OK")
    assert not [line for line in open_server.errors[before:] if "WARNING" in line]


@DIRECT
def test_wrong_keys_are_refused_before_the_body(artifacts: dict[str, Path], keyed_server: Server) -> None:
    with OtherClient(keyed_server):
        for key in ("", "Bearer", "Bearer x", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \xe9"):
            began = time.monotonic()
            lines = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: 0\r\n\r\n"
            assert connect(keyed_server, lines.encode("latin-1")).recv(4096).startswith(b"HTTP/1.1 401"), key
            assert time.monotonic() - began < 1.0
        answer = connect(keyed_server, head(content_length=10, authorization="Bearer x")).recv(4096)
        assert answer.startswith(b"HTTP/1.1 401")  # the body never comes


@DIRECT
def test_a_request_cannot_forge_lines_of_the_log(open_server: Server) -> None:
    before = len(open_server.errors)
    for path in ("/a%0d%0aWARNING%20forged", "/\x1b[31m", "/%1b]0;x%07", "/" + "x" * 5000):
        talk(open_server, head(path, "GET", connection="close", user_agent="y\tz"))
    with connect(open_server, completion()) as connection:
        connection.recv(4096)
    lines = open_server.errors[before:]
    assert not any("\x1b" in line or line.startswith("WARNING forged") or len(line) > 400 for line in lines), lines


def _descriptors(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def _wait_for_descriptors(server: Server, most: int) -> None:
    end = time.monotonic() + PATIENCE
    while _descriptors(server) > most:
        assert time.monotonic() < end, "connections are not closed"
        time.sleep(0.05)


def _memory(server: Server) -> int:
    """Return the resident bytes of the server's process."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
