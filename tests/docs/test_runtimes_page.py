"""The page about runtimes shows what was tried with the exported graphs."""

from __future__ import annotations

from pathlib import Path

from tests.compat.tried import ROWS, listed

PAGE = Path(__file__).resolve().parents[2] / "docs" / "runtimes.md"


def test_it_shows_what_was_tried() -> None:
    assert listed(ROWS) in PAGE.read_text(), f"{PAGE} should have:\n{listed(ROWS)}"
