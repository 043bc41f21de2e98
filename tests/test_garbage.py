"""Tests run with a collector of garbage, and what was there before them is nothing that it looks at."""

from __future__ import annotations

import gc
import weakref


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
