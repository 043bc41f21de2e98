"""Which phases a verification has, how long they may take, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

DAMPING = 2.0  # seconds of both estimate and clock: without it the first moments would say anything about the rest


@dataclass(frozen=True)
class Phase:
    """A part of the work, under the name that progress is reported with.

    Attributes:
        name: One of :mod:`~lucid_deploy.parity.measure.phases`.
        seconds: How long it may take; 0: not known.
    """

    name: str
    seconds: float = 0.0


@dataclass(frozen=True)
class VerificationProgress:
    """Where a verification is.

    Attributes:
        phase: Its name.
        index: Its number, from 1.
        phases: How many there are, as far as is known.
        done: Calls done in this phase.
        total: Calls of this phase.
        left: Estimate of the seconds that are left of everything.
    """

    phase: str
    index: int
    phases: int
    done: int
    total: int
    left: float


class PhaseTracker:
    """Follows a verification through its phases; an instance's :meth:`update` is a ``Progress``.

    Phases that were not planned (causes, which are looked for after a failure) are put in where they begin.

    Args:
        phases: What is planned, in order.
        listener: Called with every step.
        clock: Gives seconds.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        listener: Callable[[VerificationProgress], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.phases = list(phases)
        self._listener, self._clock = listener, clock
        self._index = -1
        self._started = self._began = clock()

    @property
    def seconds(self) -> float:
        """The estimate of everything that was planned."""
        return sum(phase.seconds for phase in self.phases)

    def update(self, what: str, done: int, total: int) -> None:
        """Note how many calls of a phase are done."""
        if self._index < 0 or self.phases[self._index].name != what:
            self._begin(what)
        if self._listener is not None:
            left = self._left(done / total if total else 0.0)
            self._listener(VerificationProgress(what, self._index + 1, len(self.phases), done, total, left))

    def _begin(self, what: str) -> None:
        later = [phase.name for phase in self.phases[self._index + 1 :]]
        if what in later:
            self._index += 1 + later.index(what)
        else:
            self._index += 1
            self.phases.insert(self._index, Phase(what))
        self._began = self._clock()

    def _left(self, share: float) -> float:
        """Return planned seconds that are left, times how much slower or faster than planned it went so far."""
        now, current = self._clock(), self.phases[self._index]
        done = sum(phase.seconds for phase in self.phases[: self._index]) + share * current.seconds
        pace = (now - self._started + DAMPING) / (done + DAMPING)
        left = pace * (self.seconds - done)
        if not current.seconds and share:
            left += (now - self._began) * (1 - share) / share
        return max(left, 0.0)
