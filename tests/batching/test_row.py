"""What requests may ask for, and the tokens of a row: along its drafts, with log-probabilities, until it ends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.batching.request import Finished, Request, Token
from lucid_deploy.batching.row import Chooser, Row, log_probabilities, propose
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.sampling import Sampler, Sampling
from lucid_deploy.generation.speculation import DraftCounts

EOS = 2


class Eager:
    """Proposes as many tokens as it may."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []

    def add(self, tokens: list[int]) -> None:
        pass

    def propose(self, most: int) -> list[int]:
        return list(range(most))

    def learn(self, proposed: int, accepted: int) -> None:
        self.heard.append((proposed, accepted))


class Failing(Eager):
    def propose(self, most: int) -> list[int]:
        raise LucidError("The draft model is broken.")


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
    request = Request([5, 6], most, Sampling())
    sampler = Sampler(request.sampling, request.prompt_ids)
    return Row(3, request, sampler, None, None, ids=[5] * ids, next=6, drafter=drafter)


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
    events: list[Any] = []
    one = row(drafter=Eager())
    assert chooser.follow(one, drafts, logits(4, 7, 8)[: 1 + len(drafts)], events) == (kept, None)
    assert [(event.token, event.drafted) for event in events] == [
        (token, draft == token) for token, draft in zip(tokens, [*drafts, None], strict=False)
    ]
    assert one.ids == [5, 6, *tokens[:-1]] and one.next == tokens[-1] and one.verified == bool(drafts)
    assert (counts.proposed, counts.accepted) == counted and chooser.tokens == len(tokens)
    assert one.drafter.heard == ([counted] if drafts else [])  # type: ignore[union-attr]


@pytest.mark.parametrize(("most", "reason", "tokens"), [(10, "eos", 1), (1, "length", 1)])
def test_a_row_ends_within_its_drafts(most: int, reason: str, tokens: int, chooser: Chooser) -> None:
    events: list[Any] = []
    kept, end = chooser.follow(row(most), [4, EOS, 7], logits(4, EOS, 7, 8), events)
    assert end is not None and (kept, end.reason, len(events)) == (tokens + (reason == "eos"), reason, tokens)
    assert all(isinstance(event, Token) for event in events)


def test_a_row_ends_at_the_context_and_where_logits_are_not_finite(chooser: Chooser) -> None:
    assert chooser.follow(row(ids=19), [], logits(4), [])[1] == Finished(3, "context")
    end = chooser.follow(row(), [], logits(4) * np.nan, [])[1]
    assert end is not None and end.failed and "not finite" in (end.error or "")


@pytest.mark.parametrize(("rows", "most"), [(1, 15), (2, 15), (4, 7), (16, 1), (32, 0), (50, 0)])
def test_many_rows_draft_little(rows: int, most: int, counts: DraftCounts) -> None:
    drafts = propose({number: row(100, drafter=Eager()) for number in range(rows)}, None, counts)
    assert {len(each) for each in drafts.values()} == {most}


def test_rows_draft_within_their_answers_and_the_context(counts: DraftCounts) -> None:
    rows = {1: row(100, 10, Eager()), 2: row(3, 10, Eager()), 3: row(1, 10, Eager()), 4: row(100, 10)}
    assert {number: len(drafts) for number, drafts in propose(rows, None, counts).items()} == {1: 7, 2: 2, 3: 0, 4: 0}
    rows[4].ids = [0] * 16
    assert {number: len(drafts) for number, drafts in propose(rows, 20, counts).items()} == {1: 3, 2: 2, 3: 0, 4: 0}
    assert not any(propose(rows, 17, counts).values())  # the next token has the last place


def test_a_drafter_that_fails_is_dropped_alone(caplog: pytest.LogCaptureFixture, counts: DraftCounts) -> None:
    rows = {1: row(100, 10, Failing()), 2: row(100, 10, Eager()), 3: row(100, 10, Failing())}
    for _ in range(2):
        assert {number: len(drafts) for number, drafts in propose(rows, None, counts).items()} == {1: 0, 2: 9, 3: 0}
    assert (rows[1].drafter, rows[3].drafter, counts.failures) == (None, None, 2)
    assert [record.message for record in caplog.records] == [
        "Drafting failed, the answer goes on without: The draft model is broken."
    ]


def test_log_probabilities_are_pytorchs() -> None:
    raw = (20 * np.random.default_rng(0).standard_normal(4001)).astype(np.float32)
    wanted = torch.log_softmax(torch.from_numpy(raw).double(), 0)
    found, top = log_probabilities(raw, 17, 20)
    assert found == pytest.approx(wanted[17].item(), rel=1e-12)
    best = wanted.topk(20)
    assert [token for token, _ in top] == best.indices.tolist()
    np.testing.assert_allclose([value for _, value in top], best.values.numpy(), rtol=1e-12)
    assert log_probabilities(raw, 0, None) == (None, ())
    assert log_probabilities(np.zeros(4, np.float32), 2, 0) == (pytest.approx(-np.log(4)), ())


def check_length(tokens: int) -> None:
    if tokens > 10:
        raise LucidError(f"The context would be {tokens} tokens.")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([], 5), "The prompt is empty"),
        (Request([1, 97], 5), "Token id 97 is outside the vocabulary"),
        (Request([1] * 11, 5), "context would be 11 tokens"),
        (Request([1], 0), "max_new_tokens must be at least 1"),
        (Request([1], 5, top_logprobs=98), "top_logprobs must be 0 to 97"),
        (Request([1], 5, Sampling(logit_bias=((97, 1.0),))), "logit_bias: token id 97 is outside"),
        (Request([1] * 10, 1, top_logprobs=97), ""),
    ],
)
def test_requests_that_cannot_run(request_: Request, message: str) -> None:
    session: Any = SimpleNamespace(config=SimpleNamespace(vocab_size=97), check_length=check_length)
    if not message:
        request_.check(session)
        return
    with pytest.raises(LucidError, match=message):
        request_.check(session)
