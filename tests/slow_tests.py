"""A pytest plugin: marks as slow what exports a model, compiles kernels or starts a server, by its fixtures, and the
files of slow_files.txt, which took five seconds or more of one core when all tests were measured (--durations=0).
These files begin a run, the longest first: one that begins last keeps one core while the others have nothing to do.

`make test-fast` leaves out what is marked so, here or in a file (``pytestmark = pytest.mark.slow``).
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [ROOT / line for line in (ROOT / "tests" / "slow_files.txt").read_text().split()]
RANKS = {path: rank for rank, path in enumerate(FILES)}
SLOW_FIXTURES = {
    "artifacts",  # exported for a server
    "cluster",
    "compiled",
    "cpu_library",
    "demo",  # exported from the bundled checkpoint
    "demo_artifact",
    "exported",
    "interpreter_pool",
    "lm",
    "quantized",
    "site",
    "start",
}


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: RANKS.get(item.path, len(RANKS)))
    for item in items:
        if item.path in RANKS or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
