"""Signals that end a command: what the code that they cut off makes of them is not shown as a bug."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from lucid_deploy.cli._signals import unwinding_on_signals
from tests.patience import PATIENCE

# What PyTorch does where a signal comes while it asks a Python object for its length: another error takes its place.
REPLACED = """
import os, signal, sys
from lucid_deploy.cli._signals import unwinding_on_signals
from lucid_deploy.errors import LucidError
number, handled, heard = int(sys.argv[1]), sys.argv[2] == "handled", []
known = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL  # whatever the parent had
signal.signal(number, (lambda *_: heard.append(number)) if handled else known)
before = signal.getsignal(number)
for error in (ValueError("could not determine the shape"), LucidError("The file is damaged.")):
    try:
        with unwinding_on_signals():
            try:
                os.kill(os.getpid(), number)
            except BaseException:
                pass
            raise error
    except BaseException as raised:
        print(type(raised).__name__, *raised.args, raised.__cause__ is error)
    assert signal.getsignal(number) == before
print(len(heard))
"""


def replaced(number: int, handled: str) -> list[str]:
    """In a process of its own: a signal that this one hears too late would end it."""
    command = [sys.executable, "-c", REPLACED, str(int(number)), handled]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout.splitlines()


@pytest.mark.parametrize(
    ("number", "raised"),
    [
        (signal.SIGTERM, "SystemExit 143 True"),
        (signal.SIGHUP, "SystemExit 129 True"),
        (signal.SIGINT, "KeyboardInterrupt True"),
    ],
)
def test_an_error_after_a_signal_counts_as_the_signal(number: int, raised: str) -> None:
    assert replaced(number, "by nobody") == [raised, raised, "0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_who_handles_a_signal_goes_on_handling_it(number: int) -> None:
    shape, damaged, heard = replaced(number, "handled")
    assert shape == "ValueError could not determine the shape False"
    assert damaged == "LucidError The file is damaged. False"
    assert heard == "2"


def test_an_error_without_a_signal_stays_that_error() -> None:
    with pytest.raises(ValueError, match="ours"), unwinding_on_signals():
        raise ValueError("ours")
