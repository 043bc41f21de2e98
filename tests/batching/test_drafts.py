"""Drafts of rows within what a step should run, and how far a row follows its own."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from lucid_deploy.batching.drafts import follow, propose
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.speculation import DraftCounts


class Eager:
    """Proposes as many tokens as it may."""

    def __init__(self):
        self.heard = []

    def propose(self, most):
        return list(range(most))

    def learn(self, proposed, accepted):
        self.heard.append((proposed, accepted))


@dataclass
class Row:
    ids: list = field(default_factory=lambda: [0] * 10)
    next: int = 7
    left: int = 100
    drafter: Eager | None = field(default_factory=Eager)


@pytest.mark.parametrize(("rows", "most"), [(1, 15), (2, 15), (4, 7), (16, 1), (32, 0), (50, 0)])
def test_many_rows_draft_little(rows, most):
    found = propose({number: Row() for number in range(rows)}, None, DraftCounts())
    assert {len(drafts) for drafts in found.values()} == {most}


def test_rows_draft_within_their_answers_and_the_context():
    rows = {1: Row(), 2: Row(left=3), 3: Row(left=1), 4: Row(drafter=None)}
    counts = DraftCounts()
    assert {number: len(drafts) for number, drafts in propose(rows, None, counts).items()} == {1: 7, 2: 2, 3: 0, 4: 0}
    rows[4].ids = [0] * 16
    assert {number: len(drafts) for number, drafts in propose(rows, 20, counts).items()} == {1: 3, 2: 2, 3: 0, 4: 0}
    assert not any(propose(rows, 17, counts).values())  # the next token has the last place


class Failing(Eager):
    """Fails."""

    def propose(self, most):
        raise LucidError("The draft model is broken.")


def test_a_drafter_that_fails_is_dropped_alone(caplog):
    rows, counts = {1: Row(drafter=Failing()), 2: Row(), 3: Row(drafter=Failing())}, DraftCounts()
    for _ in range(2):
        assert {number: len(drafts) for number, drafts in propose(rows, None, counts).items()} == {1: 0, 2: 9, 3: 0}
    assert (rows[1].drafter, rows[3].drafter, counts.failures) == (None, None, 2)
    assert [record.message for record in caplog.records] == [
        "Drafting failed, the answer goes on without: The draft model is broken."
    ]


@pytest.mark.parametrize(
    ("chosen", "ended", "kept", "accepted"),
    [
        ([4, 5, 6, 9], False, 4, 3),  # all drafts are right, and a token behind them
        ([4, 8], False, 2, 1),
        ([3], False, 1, 0),
        ([4, 5], True, 2, 1),  # the row ends with the second
    ],
)
def test_a_row_follows_its_drafts_while_they_are_right(chosen, ended, kept, accepted):
    row, counts, left = Row(), DraftCounts(), list(chosen)

    def choose(logits, draft):
        place = len(chosen) - len(left)
        assert int(logits[0]) == place  # the logits behind the token before
        assert draft == [4, 5, 6, None][place]
        row.next = left.pop(0)
        return bool(left) or not ended

    logits = np.arange(4.0)[:, None] + np.array([0.0, 50.0])
    assert follow(row, [4, 5, 6], logits, choose, counts) == kept
    assert row.ids[10:] == [7, 4, 5, 6][:kept] and not left
    assert (counts.proposed, counts.accepted, counts.near_ties) == (3, accepted, 0)
    assert row.drafter.heard == [(3, accepted)]
