"""Which row ends where memory is short."""

from __future__ import annotations

from lucid_deploy.batching.request import Request
from lucid_deploy.batching.row import Row, first_to_end
from lucid_deploy.generation.sampling import Sampler, Sampling


def row(number: int, tokens: int, count: int, is_new: bool = False) -> Row:
    request = Request([5], 9)
    return Row(number, request, Sampler(Sampling(), [5]), None, None, [7] * tokens, count=count, is_new=is_new)


def test_the_longest_ends_unless_one_has_just_joined() -> None:
    rows = [row(0, 30, 4), row(1, 90, 2), row(2, 50, 9), row(3, 60, 0)]  # the last: its prompt runs
    assert first_to_end(rows) == 1
    new = [row(4, 10, 1, is_new=True), row(5, 12, 4, is_new=True)]  # the last: drafts with its prompt were right
    assert first_to_end([*rows, *new]) == 5
    assert first_to_end([row(0, 30, 4), row(3, 60, 0)]) == 3


def test_what_is_left_of_a_row() -> None:
    assert (row(0, 3, 4).left, row(0, 3, 4).greedy) == (5, True)
