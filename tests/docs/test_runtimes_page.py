"""The page about runtimes shows what was tried with the exported graphs."""

from __future__ import annotations

from pathlib import Path

from tests.compat.tried import FORMS, ROWS, TABLE, listed, tabled

PAGE = Path(__file__).resolve().parents[2] / "docs" / "runtimes.md"


def test_it_shows_what_was_tried() -> None:
    assert listed(ROWS) in PAGE.read_text(), f"{PAGE} should have:\n{listed(ROWS)}"


def test_the_table_has_every_runtime_of_the_list() -> None:
    assert list(TABLE) == [row.runtime for row in ROWS] and {len(cells) for cells in TABLE.values()} == {len(FORMS)}
    assert tabled() in PAGE.read_text(), f"{PAGE} should have:\n{tabled()}"
