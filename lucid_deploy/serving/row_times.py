"""The phases of a generation, timed where its tokens become text."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from lucid_deploy.serving.engine import EngineFault
from lucid_deploy.serving.jobs import Event, RowTimes

if TYPE_CHECKING:
    from lucid_deploy.batching import Finished, Mark, Token


class RowEvents(Protocol):
    """What turns events of the engine into events for the client."""

    def take(self, event: Mark | Token | Finished | EngineFault) -> tuple[list[Event], bool]:
        """Return what an event means to the client, and whether the generation is over."""
        ...


class TimedRow:
    """A generation whose times are among its events: when a phase begins, and at the end.

    Args:
        row: Its number in the job.
        inner: What makes its other events.
    """

    def __init__(self, row: int, inner: RowEvents) -> None:
        self._inner = inner
        self._times = RowTimes(row, queued=time.time_ns())

    @property
    def times(self) -> RowTimes:
        """What is known so far."""
        return self._times

    def take(self, event: Mark | Token | Finished | EngineFault) -> tuple[list[Event], bool]:
        """As :meth:`RowEvents.take`."""
        from lucid_deploy.batching import Mark

        if isinstance(event, Mark):
            self._mark(event)
            self._inner.take(event)  # it counts what was reused
            return [self._times], False
        began = time.time_ns()
        events, done = self._inner.take(event)
        self._note_text(began, time.time_ns(), done)
        return ([self._times, *events] if done else events), done

    def _mark(self, mark: Mark) -> None:
        if mark.phase == "prefill":
            self._times = replace(self._times, prefill=mark.at, reused=mark.reused)
        else:
            self._times = replace(self._times, decode=mark.at)

    def _note_text(self, began: int, ended: int, done: bool) -> None:
        times = self._times
        self._times = replace(
            times,
            ended=ended if done else 0,
            text_began=times.text_began or began,
            text_ended=ended,
            text_spent=times.text_spent + ended - began,
        )
