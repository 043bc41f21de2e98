"""A pytest plugin: marks as slow what exports a model, compiles kernels or starts a server, by its fixtures.

`make test-fast` leaves out what is marked so, here or in a file (``pytestmark = pytest.mark.slow``).
"""

from __future__ import annotations

import pytest

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
    "remembered_trace",
    "site",
    "start",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
