"""The times of a generation's phases."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.batching import Finished, Mark, Token
from lucid_deploy.serving.jobs import Event, RowEnd, RowTimes, TextPiece
from lucid_deploy.serving.row_times import TimedRow


class Texts:
    """Makes a piece of each token, which takes a while, and an end of the end."""

    def __init__(self, clock: list[int]) -> None:
        self._clock = clock

    def take(self, event: Any) -> tuple[list[Event], bool]:
        self._clock[0] += 3
        return ([RowEnd(1, "stop")], True) if isinstance(event, Finished) else ([TextPiece(1, "a", 1)], False)


def test_the_phases_of_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100]
    monkeypatch.setattr("lucid_deploy.serving.row_times.time.time_ns", lambda: clock[0])
    row = TimedRow(1, Texts(clock))
    assert row.times == RowTimes(1, queued=100)
    assert row.take(Mark(7, "prefill", 110, 32)) == ([RowTimes(1, 100, prefill=110, reused=32)], False)
    assert row.take(Mark(7, "decode", 120)) == ([RowTimes(1, 100, 110, 120, reused=32)], False)
    clock[0] = 130
    assert row.take(Token(7, 5)) == ([TextPiece(1, "a", 1)], False)
    clock[0] = 140
    assert row.take(Token(7, 5)) == ([TextPiece(1, "a", 1)], False)
    clock[0] = 150
    times, end = row.take(Finished(7, "eos"))[0]
    assert end == RowEnd(1, "stop")
    assert times == RowTimes(1, 100, 110, 120, 153, 32, text_began=130, text_ended=153, text_spent=9)


def test_a_generation_without_tokens() -> None:
    row = TimedRow(1, Texts([0]))
    (times, _), done = row.take(Finished(7, "eos"))
    assert done
    assert isinstance(times, RowTimes)
    assert times.ended >= times.queued > 0
    assert times.prefill == times.decode == 0
