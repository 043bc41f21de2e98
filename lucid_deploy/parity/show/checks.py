"""What was checked and what was not, one entry each: silence about a check would look as if it had been made."""

from __future__ import annotations

from dataclasses import asdict, dataclass

PASSED, FAILED, REPORTED, NOT_DONE = "passed", "failed", "reported", "not done"


@dataclass(frozen=True)
class Check:
    """One thing that a verification checks, or could check.

    Attributes:
        name: What it is about, such as ``files``.
        outcome: ``passed``, ``failed``, ``reported`` (measured, and left to the reader to judge) or ``not done``.
        detail: What was found; of a check that was not done, why not.
    """

    name: str
    outcome: str
    detail: str

    @property
    def done(self) -> bool:
        """Whether anything was checked."""
        return self.outcome != NOT_DONE

    def to_dict(self) -> dict[str, str | bool]:
        """Return plain data for JSON."""
        return {**asdict(self), "done": self.done}


def verdict_of(passed: bool) -> str:
    """Return the outcome of a check that was made."""
    return PASSED if passed else FAILED


def not_done(name: str, reason: str) -> Check:
    """Return a check that was not made."""
    return Check(name, NOT_DONE, reason)
