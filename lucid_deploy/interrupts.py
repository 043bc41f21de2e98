"""Ctrl-C while a program is still being read: one line, and no traceback of whatever import it met."""

from __future__ import annotations

import os
import signal
from types import FrameType

_STDERR = 2


def begin() -> None:
    """Let Ctrl-C end the process at once, unless it is ignored or somebody else handles it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)


def end_at_once(number: int, _frame: FrameType | None) -> None:
    """Handle a signal where nothing is begun that had to be cleaned up: no import makes another error of it."""
    try:
        os.write(_STDERR, b"Interrupted.\n")
    finally:
        os._exit(128 + number)


def begun() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, as from here on there is something to clean up."""
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
