"""Tools of the attack tests: raw connections, and a client that measures how long attacks make it wait."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.patience import PATIENCE
from tests.serving.serving_tools import MODEL, PROMPT, Server

KEY, ATTACKER = "sk-of-the-other-client", "sk-of-the-attacker"
PAUSE = 0.1 if "LUCID_ATTACKS_NGINX" in os.environ else 0.03  # nginx accepts 50 requests a second from one address


def bearable() -> float:
    """Return the longest wait, in seconds, that the tests accept: one, and more in proportion on a busy machine.

    ``make attacks``, for a quiet machine, sets LUCID_ATTACKS_UNSCALED: then it is always one second.
    """
    if os.environ.get("LUCID_ATTACKS_UNSCALED"):
        return 1.0
    load = float(Path("/proc/loadavg").read_text().split()[0])
    return max(1.0, 1.5 * load / (os.cpu_count() or 1))


def head(path: str = "/v1/completions", method: str = "POST", **headers: Any) -> bytes:
    """Return a request's head; ``content_type="…"`` is the header Content-Type."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-').title()}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def completion(key: str = KEY, **more: Any) -> bytes:
    """Return a whole request for a completion."""
    body = json.dumps({"model": MODEL, "prompt": PROMPT, "temperature": 0, **more}).encode()
    return head(content_type="application/json", content_length=len(body), authorization=f"Bearer {key}") + body


def connect(server: Server, data: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    """Return a new connection on which ``data`` was sent."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE, source_address=(source, 0))
    connection.sendall(data)
    return connection


def talk(server: Server, data: bytes) -> bytes:
    """Send bytes; return what the server sends until it closes or resets the connection."""
    out = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        with suppress(OSError):  # the server may have answered and closed already
            connection.sendall(data)
        with suppress(ConnectionResetError):
            while part := connection.recv(65536):
                out += part
    return out


def error_of(answer: bytes) -> dict[str, Any]:
    """Return the error in the JSON body of an HTTP answer."""
    error = json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


class OtherClient:
    """Asks for health and for first tokens during an attack, a ``with`` block, and fails if an answer takes too long.

    Args:
        server: The server that is attacked.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ended = threading.Event()
        self._seconds: dict[str, list[float]] = {"health": [], "first token": []}
        self._failures: list[str] = []
        self._threads = [
            threading.Thread(target=self._repeat, args=("health", head("/healthz", "GET", connection="close"))),
            threading.Thread(target=self._repeat, args=("first token", completion(stream=True, max_tokens=2))),
        ]

    def __enter__(self) -> OtherClient:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        time.sleep(0.2)
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        if os.environ.get("LUCID_ATTACKS_UNSCALED"):
            longest = {what: round(max(seconds), 2) for what, seconds in self._seconds.items()}
            sys.stderr.write(f"longest waits in s, of {len(self._seconds['health'])}: {longest}\n")
        if error is None:
            assert not self._failures, self._failures[:3]
            worst = {what: round(max(seconds), 2) for what, seconds in self._seconds.items()}
            assert max(worst.values()) < bearable(), worst

    def _repeat(self, what: str, request: bytes) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                with connect(self._server, request, "127.0.0.2") as connection:  # from another address
                    answer = connection.recv(65536)
                    while what != "health" and b"data: " not in answer:
                        part = connection.recv(65536)
                        if not part:
                            break
                        answer += part
            except OSError as error:
                answer = repr(error).encode()
            self._seconds[what].append(time.monotonic() - began)
            if not answer.startswith(b"HTTP/1.1 200"):
                self._failures.append(f"{what}: {answer[:300]!r}")
            self._ended.wait(PAUSE)


@contextmanager
def many(server: Server, count: int, data: bytes) -> Iterator[list[socket.socket]]:
    """Open connections and send the same bytes on each; connections that the server refuses are left out."""
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            try:
                opened.append(connect(server, data))
            except OSError:
                continue
        yield opened
    finally:
        for connection in opened:
            connection.close()


def send_slowly(connections: list[socket.socket], part: bytes, seconds: float) -> None:
    """Send the same few bytes on all connections, again and again."""
    more = 1 + int(os.environ.get("LUCID_FUZZ_EXAMPLES", "0")) // 500  # longer with make fuzz
    end = time.monotonic() + seconds * more
    while time.monotonic() < end:
        for connection in connections:
            try:
                connection.sendall(part)
            except OSError:
                continue
        time.sleep(0.2)
