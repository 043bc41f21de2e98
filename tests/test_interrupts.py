"""Ctrl-C while a program is read ends it; behind that it raises again. Handlers of others stay."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from lucid_deploy.interrupts import begin, begun, end_at_once


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_from_the_begin_on_until_all_is_read() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    begin()
    assert signal.getsignal(signal.SIGINT) is end_at_once
    begun()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_stay() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin()
    begun()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
