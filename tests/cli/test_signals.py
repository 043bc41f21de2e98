"""Signals that end a command: what the code that they cut off makes of them is not shown as a bug."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest

from lucid_deploy.cli._signals import unwinding_on_signals
from lucid_deploy.errors import LucidError


def replace_by(error: Exception, number: int) -> None:
    """Do what PyTorch does where a signal comes while it asks a Python object for its length."""
    with contextlib.suppress(SystemExit, KeyboardInterrupt):
        os.kill(os.getpid(), number)
    raise error


@pytest.mark.parametrize("error", [ValueError("could not determine the shape"), LucidError("The file is damaged.")])
@pytest.mark.parametrize(
    ("number", "kind", "status"),
    [
        (signal.SIGTERM, SystemExit, (143,)),
        (signal.SIGHUP, SystemExit, (129,)),
        (signal.SIGINT, KeyboardInterrupt, ()),
    ],
)
def test_an_error_after_a_signal_counts_as_the_signal(
    error: Exception, number: int, kind: type[BaseException], status: tuple[int, ...]
) -> None:
    unhandled = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, unhandled)  # whoever runs the tests may have another
    try:
        with pytest.raises(kind) as raised, unwinding_on_signals():
            replace_by(error, number)
        assert signal.getsignal(number) == unhandled
    finally:
        signal.signal(number, before)
    assert raised.value.args == status and raised.value.__cause__ is error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_handles_a_signal_goes_on_handling_it(number: int) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda number, _: heard.append(number))
    try:
        with pytest.raises(ValueError, match="ours"), unwinding_on_signals():
            replace_by(ValueError("ours"), number)
    finally:
        signal.signal(number, before)
    assert heard == [number]


def test_an_error_without_a_signal_stays_that_error() -> None:
    with pytest.raises(ValueError, match="ours"), unwinding_on_signals():
        raise ValueError("ours")
