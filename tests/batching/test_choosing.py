"""Tokens of a row along its drafts: what comes out, what counts, and how it ends."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from lucid_deploy.batching.choosing import Choosing
from lucid_deploy.batching.request import Finished, Request, Token
from lucid_deploy.batching.row import Row
from lucid_deploy.generation.sampling import Sampler, Sampling
from lucid_deploy.generation.speculation import DraftCounts

EOS = 2


@pytest.fixture
def counts():
    return DraftCounts()


@pytest.fixture
def choosing(counts):
    config = SimpleNamespace(eos_token_ids=(EOS,))
    session = SimpleNamespace(
        config=config, context_limit=20, dtype="float32", cache_dtype="float32", rounded_inputs=None
    )
    return Choosing(session, counts, lambda number, error: Finished(number, "memory", str(error)))


def row(most=10, **fields):
    request = Request([5, 6], most, Sampling())
    return Row(3, request, Sampler(request.sampling, request.prompt_ids), None, None, ids=[5], next=6, **fields)


def logits(*tokens):
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
def test_tokens_are_chosen_for_as_long_as_drafts_are_right(choosing, counts, drafts, kept, tokens, counted):
    events, one = [], row()
    assert choosing.follow(one, drafts, logits(4, 7, 8)[: 1 + len(drafts)], events) == (kept, None)
    assert [(event.token, event.drafted) for event in events] == [
        (token, draft == token) for token, draft in zip(tokens, [*drafts, None], strict=False)
    ]
    assert one.ids == [5, 6, *tokens[:-1]] and one.next == tokens[-1] and one.verified == bool(drafts)
    assert (counts.proposed, counts.accepted) == counted and choosing.tokens == len(tokens)


@pytest.mark.parametrize(("most", "reason", "tokens"), [(10, "eos", 1), (1, "length", 1)])
def test_a_row_ends_within_its_drafts(choosing, most, reason, tokens):
    events = []
    kept, end = choosing.follow(row(most), [4, EOS, 7], logits(4, EOS, 7, 8), events)
    assert (kept, end.reason, len(events)) == (tokens + (reason == "eos"), reason, tokens)
    assert all(isinstance(event, Token) for event in events)


def test_a_choice_without_memory_ends_the_row_as_it_is_told(choosing):
    one, events = row(), []

    def choose(*_):
        raise MemoryError

    one.choose = choose
    _, end = choosing.follow(one, [], logits(4), events)
    assert (end.request, end.reason, events) == (3, "memory", [])
