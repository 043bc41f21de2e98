"""The process a command runs in: its standard streams, the signals that end it, the threads of libraries."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from lucid_deploy.errors import LucidError
from lucid_deploy.processors import allowed_threads

# Let PyTorch's OpenMP threads sleep at once, and NumPy's OpenBLAS threads after 2**4 processor cycles, not 2**26.
_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_THREAD_TIMEOUT": "4"}


def prepare_streams() -> None:
    """Let stdout and stderr write characters that their encoding lacks as backslash escapes; refuse a closed stdout."""
    if sys.stdout is None:
        raise LucidError("stdout is closed, so the result has nowhere to go; if it is not wanted, use >/dev/null")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_output(*numbers: int) -> None:
    """Redirect file descriptors to /dev/null: Python flushes them at exit, and would report a write error again."""
    null = os.open(os.devnull, os.O_WRONLY)
    for number in numbers:
        os.dup2(null, number)
    os.close(null)


def check_encoding(arguments: Sequence[str]) -> None:
    """Refuse arguments that Python could not decode: neither ONNX nor a tokenizer takes them."""
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):  # how Python keeps bytes that it cannot decode
            shown = os.fsencode(argument).decode("utf-8", "backslashreplace")
            raise LucidError(f"The argument {shown} is not text in this locale's encoding; PYTHONUTF8=1 selects UTF-8.")


@contextmanager
def raise_on_termination() -> Iterator[None]:
    """Raise SystemExit or KeyboardInterrupt on signals that end the process, so that temporary files are removed.

    Signals that are ignored (nohup) or handled by other code are left alone. Code in C, such as PyTorch's, may replace
    our exception by one of its own, so after a signal the signal's exception replaces any other error (after SIGINT any
    but a LucidError).
    """
    came: list[int] = []

    def leave(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise _as_exception(number)

    names = ("SIGTERM", "SIGHUP", "SIGINT") if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for name in names if (number := getattr(signal, name, None))}
    ours = {number: old for number, old in before.items() if old in (signal.SIG_DFL, signal.default_int_handler)}
    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    except Exception as error:
        # chat goes on after Ctrl-C, so a later LucidError has nothing to do with that signal.
        if not came or (came[0] == signal.SIGINT and isinstance(error, LucidError)):
            raise
        raise _as_exception(came[0]) from error
    finally:
        for number, old in ours.items():
            signal.signal(number, old)


def _as_exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


def bound_threads() -> None:
    """Before PyTorch or NumPy is loaded, limit their threads to those this process may use; what the user set stays.

    By default they start a thread for each core of the machine, even if a container may use fewer.
    """
    if not _loaded() and (threads := allowed_threads()) is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def let_waiting_threads_sleep() -> None:
    """Let idle threads of PyTorch and NumPy sleep at once; what the user has set stays.

    Idle threads spin for up to a tenth of a second after every matrix multiplication. In a command that alternates
    between PyTorch, NumPy and a runtime, each thereby takes processor time from the others. Results do not depend on
    it. The libraries read the environment variables that are set here once, when they are loaded.
    """
    if not _loaded():
        for name, value in _SLEEP.items():
            os.environ.setdefault(name, value)


def _loaded() -> bool:
    return bool({"numpy", "torch"} & sys.modules.keys())
