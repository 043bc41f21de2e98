"""Count calls for a progress bar."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # what runs, calls done, in all


class Meter:
    """Counts session calls and passes the count on."""

    def __init__(self, progress: Progress | None, what: str, total: int) -> None:
        self._progress, self._what, self._total, self._done = progress, what, total, 0

    def tick(self) -> None:
        """One more call is done."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._what, self._done, self._total)
