"""Slow files begin a run, the longest first, and keep the order of their tests; the others stay as they were."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.slow_tests import FILES, pytest_collection_modifyitems


def test_slow_files_begin() -> None:
    marks: list[str] = []

    def item(path: Path, name: str) -> Any:
        return SimpleNamespace(path=path, name=name, fixturenames=(), add_marker=lambda _: marks.append(name))

    fast = Path(__file__)
    items = [item(fast, "a"), item(FILES[3], "b"), item(fast, "c"), item(FILES[1], "d"), item(FILES[1], "e")]
    pytest_collection_modifyitems(items)
    assert [each.name for each in items] == ["d", "e", "b", "a", "c"]
    assert marks == ["d", "e", "b"]


def test_marks_come_before_what_is_marked_is_left_out(request: pytest.FixtureRequest) -> None:
    implementations = request.config.hook.pytest_collection_modifyitems.get_hookimpls()  # the last is called first
    names = [each.plugin_name for each in implementations]
    assert names.index("tests.slow_tests") > names.index("mark")
