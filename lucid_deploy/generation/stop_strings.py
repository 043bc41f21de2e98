"""Stop strings: end a stream of text where one of some strings begins, and show nothing of it."""

from __future__ import annotations

from collections.abc import Sequence

from lucid_deploy.errors import LucidError


class StopStrings:
    """Looks for stop strings in text that comes in pieces of any size; how it is cut makes no difference.

    Text that may become a stop string is held back. Of several stop strings the one that is complete first counts; of
    those that end together, the longest.

    Attributes:
        stopped: Whether one was found.

    Args:
        stops: The strings; none at all lets everything through.

    Raises:
        LucidError: One of them is empty.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        check_stops(stops)
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    @property
    def held(self) -> int:
        """Characters held back now."""
        return len(self._held)

    def push(self, text: str) -> tuple[str, bool]:
        """Add text.

        Args:
            text: What comes next.

        Returns:
            The text that is safe to show now, and whether a stop string has been found; after that, nothing is.
        """
        if self.stopped:
            return "", True
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]], True
        keep = self._possible(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return what is held back; call it when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _possible(self, text: str) -> int:
        """Return the length of the longest end of a text that a stop string begins with."""
        longest = min(max((len(stop) - 1 for stop in self._stops), default=0), len(text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[len(text) - length :]) for stop in self._stops):
                return length
        return 0


def check_stops(stops: Sequence[str]) -> None:
    """Check stop strings before anything runs.

    Raises:
        LucidError: One of them is empty.
    """
    if any(not stop for stop in stops):
        raise LucidError("A stop string must not be empty.")
