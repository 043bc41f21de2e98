"""Slow files begin a run, the longest first, and keep the order of their tests; the others stay as they were."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
