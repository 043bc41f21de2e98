"""What a signal that ends a command does: the work unwinds and is cleaned up, whatever the code cut off makes of it."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_UNWINDING = ("SIGTERM", "SIGHUP")
_AGAIN = 0.02  # seconds until a signal that was lost comes again: what lost it has returned by then


@contextmanager
def unwinding_on_signals(ends_process: bool = False) -> Iterator[None]:
    """Make SIGTERM and SIGHUP exceptions, so that what is half done is cleaned up, as it is after Ctrl-C.

    A signal comes anywhere, also where Python runs inside of C code that replaces the exception by one of its own, as
    PyTorch does, or inside of an import that fails then. So an error that follows a signal counts as that signal.

    Where nobody can raise, as in what Python calls when an object ends, the exception would be printed and lost. The
    signal comes again then.

    A signal that is ignored (nohup), or that somebody else handles, stays so.

    Args:
        ends_process: Whether the process ends with the block. After a signal the next Ctrl-C ends it at once, then, and
            does not raise where only exits are left.

    Raises:
        SystemExit: With status 128 + number after SIGTERM and SIGHUP.
        KeyboardInterrupt: After Ctrl-C.
    """
    came: list[int] = []

    def unwind(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        raise _as_exception(number)

    before = {number: signal.getsignal(number) for number in _numbers()}
    for number in before:
        signal.signal(number, unwind)
    hook = sys.unraisablehook
    if before:
        sys.unraisablehook = lambda lost: _send_again(came[-1]) if _is_ours(lost.exc_value, came) else hook(lost)
    try:
        yield
    except Exception as error:
        if not came and not _came_of_interrupt(error):
            raise
        raise _as_exception(came[0] if came else signal.SIGINT) from error
    finally:
        for number, handler in before.items():
            ends = ends_process and came and number == signal.SIGINT
            signal.signal(number, signal.SIG_DFL if ends else handler)
        sys.unraisablehook = hook


def _is_ours(error: BaseException | None, came: list[int]) -> bool:
    return bool(came) and type(error) is type(_as_exception(came[-1]))


def _send_again(number: int) -> None:
    """Let a signal come again, from another thread: here its handler would raise where the exception was lost."""
    main = threading.main_thread().ident

    def send() -> None:
        if hasattr(signal, "pthread_kill") and main is not None:
            signal.pthread_kill(main, number)  # ends what the thread waits for, too
        else:
            _thread.interrupt_main(signal.Signals(number))

    timer = threading.Timer(_AGAIN, send)
    timer.daemon = True
    timer.start()


def _numbers() -> list[int]:
    if threading.current_thread() is not threading.main_thread():
        return []  # only the main thread may set handlers
    known = [getattr(signal, name) for name in _UNWINDING if hasattr(signal, name)]
    ours = [number for number in known if signal.getsignal(number) == signal.SIG_DFL]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        ours.append(signal.SIGINT)
    return ours


def _came_of_interrupt(error: BaseException) -> bool:
    """Return whether an error came while Ctrl-C was being handled, by a handler of the command's own too."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, KeyboardInterrupt):
        seen = seen.__cause__ or seen.__context__
    return seen is not None


def _as_exception(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
