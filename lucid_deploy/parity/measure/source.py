"""Sessions that are open, or opened when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lucid_deploy.runtimes.session import Session

# A session, or a function that opens one: then the three models need not be in memory together.
Source = Session[Any] | Callable[[], Session[Any]]


def opened(source: Source) -> Session[Any]:
    """Return the session."""
    return source() if callable(source) else source
