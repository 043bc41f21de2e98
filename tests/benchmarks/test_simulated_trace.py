"""The synthetic day: it follows its rate, its seed and the bounds of its texts."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_trace import DAY, TraceOptions, make_trace, rate


def test_a_seed_gives_the_same_day() -> None:
    options = TraceOptions(sessions=200, seed=3)
    assert make_trace(options) == make_trace(options)
    assert make_trace(options) != make_trace(TraceOptions(sessions=200, seed=4))


def test_arrivals_follow_the_rate() -> None:
    """In each quarter of the day the count is within four standard deviations of the rate's integral."""
    options = TraceOptions(sessions=20_000, turns=1.0)
    starts = np.array([session.start for session in make_trace(options)])
    assert (np.diff(starts) >= 0).all()
    for quarter in range(4):
        begin, end = quarter * DAY / 4, (quarter + 1) * DAY / 4
        grid = np.linspace(begin, end, 1001)
        expected = float(np.mean([rate(options, moment) for moment in grid])) * DAY / 4
        assert abs(((begin <= starts) & (starts < end)).sum() - expected) < 4 * expected**0.5
    assert rate(options, 14 * 3600) == pytest.approx(20_000 / DAY * 1.7)


def test_conversations_grow_within_the_context() -> None:
    options = TraceOptions(sessions=500, turns=6.0)
    day = make_trace(options)
    assert np.mean([len(session.turns) for session in day]) > 3
    for session in day:
        length = session.system
        for turn in session.turns:
            assert turn.prompt > length
            length = turn.prompt + turn.answer
            assert turn.answer >= 1
            assert length <= options.context
        assert [turn.think > 0 for turn in session.turns] == [i > 0 for i in range(len(session.turns))]
    assert len({(session.application, session.system) for session in day}) <= options.applications
