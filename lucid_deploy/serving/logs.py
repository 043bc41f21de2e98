"""What a server logs, and how much of it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

REPEATS, WINDOW_SECONDS = 5, 10.0  # of one warning or error, in this time
LIBRARIES = ("uvicorn", "asyncio", "opentelemetry")


class RateLimit(logging.Filter):
    """Pass each kind of warning a few times in a while, then count it. A kind is the text before formatting."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # start of the window, messages in it

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a message is written."""
        if record.levelno < logging.WARNING:
            return True
        kind, now = (record.name, str(record.msg)[:200]), self._clock()
        began, count = self._seen.pop(kind, (now, 0))
        if now - began >= WINDOW_SECONDS:
            if count > REPEATS:
                record.msg = f"{record.getMessage()} ({count - REPEATS} more like it were not logged)"
                record.args = ()
            began, count = now, 0
        self._seen[kind] = began, count + 1
        if len(self._seen) > 1000:  # texts that differ each time
            del self._seen[next(iter(self._seen))]
        return count < REPEATS


def set_up_logging(level: str) -> None:
    """Log to stderr, one line an event, without anything that a request contains beyond its path."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    handler.addFilter(RateLimit())
    for name in ("lucid_deploy.serving", *LIBRARIES):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel("WARNING" if name in LIBRARIES else level.upper())
        logger.propagate = False
