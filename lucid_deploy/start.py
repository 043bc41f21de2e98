"""The programs that are installed. What they consist of is imported when they run: Ctrl-C until then is one line, too.

Only what comes before this file can still end in a traceback: Python's own start, and the package's ``__init__``.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_STDERR = 2


def main() -> None:
    """Run ``lucid-deploy``."""
    _begin()
    from lucid_deploy.cli import main as commands

    commands()


def conformance() -> None:
    """Run ``lucid-conformance``."""
    _begin()
    from lucid_deploy.cli.conformance import main as command

    command()


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


def _begin() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, or somebody else's
        signal.signal(signal.SIGINT, end_at_once)
