"""A Ray cluster that cannot be joined or started is one line."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("ray", reason="the extra ray")

from lucid_deploy.errors import LucidError
from lucid_deploy.serving.ray_connection import PROXY_PATIENCE, check_listening, connect
from tests.patience import PATIENCE


def refuse_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr("ray.init", init)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConnectionError("nobody there"), "No Ray cluster at this machine: nobody there"),
        (
            Exception("The current node timed out during startup. This could"),
            "Try again when this machine is less busy",
        ),
    ],
)
def test_what_keeps_it_from_starting_is_one_line(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_with(error, monkeypatch)
    with pytest.raises(LucidError, match=said):
        connect(None, "info")


@pytest.mark.parametrize(("given", "found"), [(None, "60"), ("7", "7")])
def test_a_cluster_here_waits_for_its_proxy_as_long_as_we_do(
    given: str | None, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = PROXY_PATIENCE[0]
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    said: list[str | None] = []
    monkeypatch.setattr("ray.init", lambda **_: said.append(os.environ.get(name)))
    connect("elsewhere", "info")
    connect(None, "info")
    assert said == [given, found]


def test_a_fault_of_another_kind_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_with(Exception("something else"), monkeypatch)
    with pytest.raises(Exception, match="something else") as found:
        connect(None, "info")
    assert not isinstance(found.value, LucidError)


def test_how_much_ray_writes_follows_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[object] = []
    monkeypatch.setattr("ray.init", lambda **given: levels.append(given["logging_level"]))
    for level in ("debug", "info", "warning", "error"):
        connect(None, level)
        levels.append(logging.getLogger("ray.serve").level)
    assert levels == [level for each in (20, 30, 40, 40) for level in (each, each)]


def test_sigterm_while_ray_starts_has_the_documented_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:  # as Ray does: a handler of its own, which is to be gone afterwards
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("ray.init", init)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as found:
        connect(None, "info")
    assert (found.value.code, signal.getsignal(signal.SIGTERM)) == (143, before)


@contextmanager
def listener(answer: bytes) -> Iterator[int]:
    """Who takes one connection, reads what is said first, and answers; its port."""
    with socket.create_server(("127.0.0.1", 0)) as opened:

        def serve() -> None:
            taken, _ = opened.accept()
            with taken:
                taken.settimeout(PATIENCE)
                taken.recv(1024)
                taken.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield opened.getsockname()[1]
        thread.join(PATIENCE)


def test_nobody_who_listens_is_one_line_and_ray_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_with(AssertionError("Ray was asked"), monkeypatch)
    with socket.socket() as taken:  # bound, so that it is nobody else's, and not listening
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for each in (address, f"ray://{address}"):
            with pytest.raises(LucidError, match=f"^No Ray cluster at {each}: Connection refused. Check --ray-address"):
                connect(each, "info")
    with pytest.raises(LucidError, match=r"^No Ray cluster at no.such.host.invalid:6379: "):
        check_listening("no.such.host.invalid:6379")


def test_who_listens_must_speak_as_ray_does() -> None:
    with listener(bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))) as port:
        check_listening(f"127.0.0.1:{port}")
    for other in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b""):
        with listener(other) as port, pytest.raises(LucidError, match="does not speak Ray's protocol"):
            check_listening(f"127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["auto", "local", "x://host:1/path"])
def test_addresses_of_other_kinds_are_left_to_ray(address: str) -> None:
    check_listening(address)
