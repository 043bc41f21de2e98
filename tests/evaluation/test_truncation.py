"""Prompts that are too long are cut where the user says, or refused by number and task."""

from __future__ import annotations

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.truncation import Fit, cut, refuse_long


@pytest.mark.parametrize(
    ("room", "way", "kept"),
    [
        (9, "left", [0, 1, 2, 3, 4, 5]),
        (6, "middle", [0, 1, 2, 3, 4, 5]),
        (4, "left", [2, 3, 4, 5]),
        (4, "middle", [0, 1, 4, 5]),
        (5, "middle", [0, 1, 3, 4, 5]),
        (1, "middle", [5]),
        (1, "left", [5]),
    ],
)
def test_what_is_kept(room: int, way: str, kept: list[int]) -> None:
    assert cut(list(range(6)), room, way) == kept


def test_all_are_counted_before_anything_runs() -> None:
    fits = [Fit("a", 10, 10), Fit("a", 12, 10), Fit("a", 15, 10), Fit("b", 11, 10)]
    with pytest.raises(
        LucidError, match=r"2 of 3 prompts of a are too long: one has 15 .* of 1 other tasks.*--truncate"
    ):
        refuse_long(fits, 12)
    refuse_long(fits[:1], 12)
