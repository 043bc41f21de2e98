"""What a server logs, and how much of it."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

REPEATS = 5  # of one warning or error …
WINDOW_SECONDS = 10.0  # … in this time
FLOOR = {"uvicorn": "WARNING", "asyncio": "WARNING", "opentelemetry": "WARNING"}  # of the libraries


class RateLimit(logging.Filter):
    """Lets a warning or error through a few times in a while, and says later how many more there were.

    Messages are the same if their text before formatting is. Requests are logged as information, which passes.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # start of the window, messages in it

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether a message is written."""
        if record.levelno < logging.WARNING:
            return True
        kind, now = (record.name, str(record.msg)[:200]), self._clock()
        began, count = self._seen.get(kind, (now, 0))
        if now - began >= WINDOW_SECONDS:
            left_out = count - REPEATS
            if left_out > 0:
                record.msg = f"{record.getMessage()} ({left_out} more like it were not logged)"
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
    for name, at_least in (("lucid_deploy.serving", level.upper()), *FLOOR.items()):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(at_least)
        logger.propagate = False
