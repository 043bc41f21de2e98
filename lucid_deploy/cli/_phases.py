"""Phases of a long command on stderr: a bar on a terminal, else a line for every phase and every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lucid_deploy.cli._console import INTERVAL, console_err

if TYPE_CHECKING:
    from lucid_deploy.parity.measure.plan import VerificationProgress


@contextmanager
def shown_phases(console: Console = console_err) -> Iterator[Callable[[VerificationProgress], None]]:
    """Yield a listener that shows every step while the block runs."""
    if not console.is_terminal:
        yield PhaseLines(console).update
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, left="")

        def update(step: VerificationProgress) -> None:
            name = f"Phase {step.index} of {step.phases}: {step.phase}"
            bar.update(task, description=name, completed=step.done, total=step.total, left=f"{words(step.left)} left")

        yield update


class PhaseLines:
    """Writes a line when a phase begins, and while it runs one every ten seconds at most."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._phase, self._last = "", 0.0

    def update(self, step: VerificationProgress) -> None:
        """Write a line, if it is time for one."""
        now, begins = self._clock(), step.phase != self._phase
        if not begins and now - self._last < INTERVAL:
            return
        self._phase, self._last = step.phase, now
        far = "" if begins else f", {step.done:,} of {step.total:,}"
        line = f"Phase {step.index} of {step.phases}: {step.phase}{far}; {words(step.left)} left in all"
        self._console.print(line, markup=False, soft_wrap=True)


def words(seconds: float) -> str:
    """Return a duration as an estimate that claims no more than it knows."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 100:
        return f"about {round(seconds / 10) * 10} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"
