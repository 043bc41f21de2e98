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


# A weak reference's callback runs wherever an object ends, and nobody gets what is raised there.
LOST = """
import os, signal, sys, time, weakref
from lucid_deploy.cli._signals import unwinding_on_signals
number = int(sys.argv[1])
signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
class Thing: pass
hook = sys.unraisablehook
try:
    with unwinding_on_signals():
        thing = Thing()
        reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), number))
        del thing
        for _ in range(300):
            time.sleep(0.1)
        print("lost")
except BaseException as raised:
    print(type(raised).__name__, *raised.args)
assert sys.unraisablehook is hook
"""


@pytest.mark.parametrize(
    ("number", "raised"),
    [
        (signal.SIGTERM, "SystemExit 143"),
        (signal.SIGHUP, "SystemExit 129"),
        (signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_a_signal_that_is_lost_where_an_object_ends_comes_again(number: int, raised: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOST, str(int(number))], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert (done.stdout, done.stderr) == (f"{raised}\n", "")


def test_what_else_is_lost_where_an_object_ends_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    class Thing:
        def __del__(self) -> None:
            raise ValueError("a bug")

    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: seen.append(lost.exc_value))
    with unwinding_on_signals():
        Thing()
    assert [str(error) for error in seen] == ["a bug"]


# The second Ctrl-C comes where the command is over and what it held is let go.
TWICE = """
import os, signal, sys
import click
from lucid_deploy.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
@main.command("long")
@click.pass_context
def long(context):
    context.find_root().call_on_close(lambda: os.kill(os.getpid(), signal.SIGINT))
    os.kill(os.getpid(), signal.SIGINT)
main.get_command = lambda context, name: long
sys.argv = ["lucid-deploy", "long"]
main()
"""


def test_a_second_interrupt_behind_the_command_s_end_is_no_failed_check() -> None:
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "Interrupted.\n")
