"""Report the progress of each phase of a verification."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]  # called with the phase, calls done, and calls in all
Tick = Callable[[], None]


class CallCounter:
    """Reports the number of finished calls of one phase to a progress bar, starting with 0."""

    def __init__(self, progress: Progress | None, phase: str, total: int) -> None:
        self._progress, self._phase, self._total, self._done = progress, phase, total, -1
        self.tick()

    def tick(self) -> None:
        """Count one more call as finished."""
        self._done += 1
        if self._progress is not None:
            self._progress(self._phase, self._done, self._total)
