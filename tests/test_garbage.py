"""Tests run with a collector of garbage, and what was there before them is nothing that it looks at."""

from __future__ import annotations

import gc
import weakref

import pytest


class Ring:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


def test_what_tests_leave_is_collected_and_nothing_older_is_looked_at() -> None:
    assert gc.isenabled() and gc.get_freeze_count() > 100_000
    ring = Ring()
    seen = weakref.ref(ring)
    del ring
    gc.collect()
    assert seen() is None


def test_a_test_that_collects_sees_what_it_made_and_nothing_older(request: pytest.FixtureRequest) -> None:
    old, seen = Ring(), []
    seen.append(weakref.ref(old))
    del old
    gc.disable()
    try:
        request.getfixturevalue("own_garbage")
        new = Ring()
        seen.append(weakref.ref(new))
        del new
        gc.collect()
    finally:
        gc.enable()
    assert seen[0]() is not None and seen[1]() is None
