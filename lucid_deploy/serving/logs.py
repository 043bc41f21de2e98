"""What a server logs."""

from __future__ import annotations

import logging
import sys

LIBRARIES = ("uvicorn", "asyncio", "opentelemetry")


def set_up_logging(level: str) -> None:
    """Log to stderr, one line an event, without anything that a request contains beyond its path."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("lucid_deploy.serving", *LIBRARIES):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel("WARNING" if name in LIBRARIES else level.upper())
        logger.propagate = False
