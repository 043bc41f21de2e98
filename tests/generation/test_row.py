"""The tokens of a row, chosen along its drafts until it ends, and the number of drafts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.generation.sampling import Sampler, Sampling
from lucid_deploy.generation.speculation import Chooser, DraftCounts, Row, propose

EOS = 2


class Eager:
    """A drafter that proposes as many tokens as it may."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []

    def add(self, tokens: list[int]) -> None:
        pass

    def propose(self, most: int) -> list[int]:
        return list(range(most))

    def learn(self, proposed: int, accepted: int) -> None:
        self.heard.append((proposed, accepted))


class Failing(Eager):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def propose(self, most: int) -> list[int]:
        raise self._error


@pytest.fixture
def counts() -> DraftCounts:
    return DraftCounts()


@pytest.fixture
def chooser(counts: DraftCounts) -> Chooser:
    session: Any = SimpleNamespace(
        config=SimpleNamespace(eos_token_ids=(EOS,)),
        context_limit=20,
        dtype="float32",
        cache_dtype="float32",
        rounded_inputs=None,
    )
    return Chooser(session, counts)


def row(most: int = 10, ids: int = 1, drafter: Any = None) -> Row:
    return Row(Sampler(Sampling()), most, ids=[5] * ids, next=6, drafter=drafter)


def logits(*tokens: int) -> np.ndarray:
    return np.eye(9, dtype=np.float32)[list(tokens)] * 10


@pytest.mark.parametrize(
    ("drafts", "kept", "tokens", "counted"),
    [
        ([], 1, [4], (0, 0)),
        ([4, 7], 3, [4, 7, 8], (2, 2)),
        ([4, 1], 2, [4, 7], (2, 1)),
        ([1, 7], 1, [4], (2, 0)),
    ],
)
def test_tokens_are_chosen_for_as_long_as_drafts_are_right(
    drafts: list[int],
    kept: int,
    tokens: list[int],
    counted: tuple[int, int],
    chooser: Chooser,
    counts: DraftCounts,
) -> None:
    one = row(drafter=Eager())
    found = list(chooser.follow(one, drafts, logits(4, 7, 8)[: 1 + len(drafts)]))
    assert [(choice.token, choice.drafted) for choice in found] == [
        (token, draft == token) for token, draft in zip(tokens, [*drafts, None], strict=False)
    ]
    assert one.ids == [5, 6, *tokens[:-1]] and one.next == tokens[-1] and one.verified == bool(drafts)
    assert len(one.ids) == 1 + kept and not one.finish_reason
    assert (counts.proposed, counts.accepted) == counted and one.count == len(tokens)
    assert one.drafter.heard == ([counted] if drafts else [])  # type: ignore[union-attr]


@pytest.mark.parametrize(("most", "reason", "tokens"), [(10, "eos", [4]), (1, "length", [4])])
def test_a_row_ends_within_its_drafts(most: int, reason: str, tokens: list[int], chooser: Chooser) -> None:
    one = row(most)
    assert [choice.token for choice in chooser.follow(one, [4, EOS, 7], logits(4, EOS, 7, 8))] == tokens
    assert (one.finish_reason, one.ids) == (reason, [5, 6, 4][: 2 + (reason == "eos")])


def test_a_row_ends_at_the_context_and_where_logits_are_not_finite(chooser: Chooser) -> None:
    one = row(ids=19)
    assert len(list(chooser.follow(one, [], logits(4)))) == 1 and one.finish_reason == "context"
    broken = np.concatenate([logits(4), logits(7) * np.nan])
    found = chooser.follow(other := row(), [4, 7], broken)
    assert next(found).token == 4
    with pytest.raises(CheckFailed, match="not finite"):
        next(found)
    assert other.ids == [5, 6, 4]  # what ran before stays


def test_a_row_that_its_caller_abandons_keeps_only_taken_tokens(chooser: Chooser, counts: DraftCounts) -> None:
    one = row()
    choices = chooser.follow(one, [4, 7], logits(4, 7, 8))
    assert next(choices).token == 4
    choices.close()  # type: ignore[attr-defined]
    assert (one.ids, one.next, one.count, counts.accepted) == ([5, 6], 4, 1, 1)


@pytest.mark.parametrize(("rows", "most"), [(1, 15), (2, 15), (4, 7), (16, 1), (32, 0), (50, 0)])
def test_more_rows_draft_fewer_tokens_each(rows: int, most: int, counts: DraftCounts) -> None:
    drafts = propose({number: row(100, drafter=Eager()) for number in range(rows)}, None, counts)
    assert {len(each) for each in drafts.values()} == {most}


def test_drafts_stay_within_the_answer_and_the_context(counts: DraftCounts) -> None:
    rows = {1: row(100, 10, Eager()), 2: row(3, 10, Eager()), 3: row(1, 10, Eager()), 4: row(100, 10)}
    assert {number: len(drafts) for number, drafts in propose(rows, None, counts).items()} == {1: 7, 2: 2, 3: 0, 4: 0}
    rows[4].ids = [0] * 16
    assert {number: len(drafts) for number, drafts in propose(rows, 20, counts).items()} == {1: 3, 2: 2, 3: 0, 4: 0}
    assert not any(propose(rows, 17, counts).values())  # the last place is for the next token


@pytest.mark.parametrize("error", [LucidError("The draft model is broken."), ValueError("a bug")])
def test_a_drafter_that_fails_is_dropped_alone(
    error: Exception, caplog: pytest.LogCaptureFixture, counts: DraftCounts
) -> None:
    rows = {1: row(100, 10, Failing(error)), 2: row(100, 10, Eager()), 3: row(100, 10, Failing(error))}
    for _ in range(2):
        assert {number: len(drafts) for number, drafts in propose(rows, None, counts).items()} == {1: 0, 2: 9, 3: 0}
    assert (rows[1].drafter, rows[3].drafter, counts.failures) == (None, None, 2)
    [record] = caplog.records  # one record for two failures
    assert record.message == f"Drafting failed; the answer goes on without drafts: {error}"
    assert bool(record.exc_info) == isinstance(error, ValueError)
