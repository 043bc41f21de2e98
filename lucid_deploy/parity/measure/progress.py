"""Count calls: what a progress bar, or a line in a log, is made of."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # what runs, calls done, in all


class CallCounter:
    """Counts session calls and passes the count on, from 0 before the first one."""

    def __init__(self, progress: Progress | None, what: str, total: int) -> None:
        self._progress, self._what, self._total, self._done = progress, what, total, 0
        self._tell()

    def tick(self) -> None:
        """One more call is done."""
        self._done += 1
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._what, self._done, self._total)
