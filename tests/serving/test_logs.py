"""A warning that repeats is logged a few times, and counted."""

from __future__ import annotations

import logging

from lucid_deploy.serving.logs import REPEATS, WINDOW_SECONDS, RateLimit


def record(message: str, *values: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("a.b", level, "", 0, message, values, None)


def test_repeats_are_left_out_and_counted() -> None:
    now = 0.0
    limit = RateLimit(lambda: now)
    assert [limit.filter(record("bad %d", i)) for i in range(100)] == [True] * REPEATS + [False] * (100 - REPEATS)
    assert limit.filter(record("another"))
    now = WINDOW_SECONDS
    last = record("bad %d", 7)
    assert limit.filter(last)
    assert last.getMessage() == f"bad 7 ({100 - REPEATS} more like it were not logged)"
    again = record("bad %d", 8)
    assert limit.filter(again) and again.getMessage() == "bad 8"


def test_requests_are_all_logged() -> None:
    limit = RateLimit(lambda: 0.0)
    assert all(limit.filter(record("GET %s", i, level=logging.INFO)) for i in range(100))


def test_texts_that_differ_each_time_take_no_memory() -> None:
    limit = RateLimit(lambda: 0.0)
    assert all(limit.filter(record(f"text {i}")) for i in range(5000))
    assert limit.filter(record("text 0"))  # forgotten
