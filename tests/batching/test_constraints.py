"""Constrained and free requests share a batch, and each gets the tokens that it gets alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import jsonschema
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.generation.constraint import Constraint, from_choices, from_json_schema, from_regex
from lucid_deploy.generation.drafting import Drafter
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.guide import Guide, GuideFactory
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.generation.speculation import DraftCounts
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Session
from tests.batching.draining import drain

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "n": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
PROMPT = [40, 41, 40, 41, 70]
Setup = tuple[Session, TextTokenizer, GuideFactory]


@pytest.fixture(scope="module", params=["growing", "static"])
def setup(request: pytest.FixtureRequest, with_byte_level_tokenizer: Callable[..., tuple[Path, Artifact]]) -> Setup:
    _, artifact = with_byte_level_tokenizer(cache=request.param)
    session, tokenizer = open_session(artifact), TextTokenizer(artifact.directory)
    return session, tokenizer, GuideFactory(tokenizer, session.config.vocab_size, session.config.eos_token_ids)


def alone(setup: Setup, request: Request) -> tuple[list[int], str]:
    session, _, guides = setup
    guide = None if request.constraint is None else guides.open(request.constraint, request.stop_at_eos).result()
    running = Generation(
        session, request.prompt_ids, request.max_new_tokens, request.sampling, None, request.stop_at_eos, guide=guide
    )
    return list(running), running.finish_reason


def together(
    setup: Setup, requests: list[Request], counts: DraftCounts | None = None, **options: Any
) -> list[tuple[list[int], str]]:
    session, _, guides = setup
    batcher = Batcher(session, guides=guides, **options)
    numbers = [batcher.submit(request) for request in requests]
    tokens, ends = drain(batcher)
    if counts is not None:
        vars(counts).update(vars(batcher.drafts))
    return [(tokens.get(number, []), ends[number].reason) for number in numbers]


def request(constraint: Constraint | None, seed: int = 0, count: int = 60, **more: Any) -> Request:
    return Request([*PROMPT, seed + 2], count, Sampling(1.5, seed=seed), constraint=constraint, **more)


def test_each_request_gets_the_tokens_that_it_gets_alone(setup: Setup) -> None:
    schema = from_json_schema(SCHEMA)
    requests = [
        request(schema, 1),
        request(None, 2, count=20),
        request(schema, 3, stop_at_eos=False),
        request(from_regex("[a-f]{4,9}"), 4),
        request(from_choices(["left", "right"]), 5),
        request(None, 6, count=30),
        request(schema, 7, top_logprobs=2),
        Request([*PROMPT, 9], 60, Sampling(), constraint=schema),
    ]
    found = together(setup, requests, rows=3)
    assert found == [alone(setup, item) for item in requests]
    assert found == together(setup, requests, rows=8, prefill_chunk=2, prefix_tokens=100)
    _, tokenizer, _ = setup
    for (ids, reason), item in zip(found, requests, strict=True):
        if item.constraint == schema and reason == "eos":
            jsonschema.validate(json.loads(tokenizer.decode(ids)), SCHEMA)
    assert [reason for (_, reason), item in zip(found, requests, strict=True) if item.constraint].count("eos") >= 5
    assert [found[1][1], found[5][1]] == ["length", "length"]
    assert tokenizer.decode(found[4][0]) in ("left", "right")


def test_drafts_change_no_constrained_answer(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts that the constraint rules out are rejected; allowed ones are accepted until the text is complete."""
    monkeypatch.setattr("lucid_deploy.batching.batcher.GRACE_SECONDS", 60.0)  # drafts whose masks are late are dropped
    schema = from_json_schema(SCHEMA)
    requests = [
        Request([*PROMPT, 9], 60, Sampling(), constraint=schema),
        request(schema, 1),
        request(None, 2, count=20),
        request(from_choices(["left", "right"]), 5, stop_at_eos=False),
        Request([*PROMPT, 9], 30, Sampling(), constraint=from_regex("(ab|cd){4,9}")),
    ]
    answers = [alone(setup, item) for item in requests]
    for copied in (False, True):  # False: drafts that may be wrong; True: drafts that are the answers
        makers = map(Known, [ids if copied else [] for ids, _ in answers])
        counts = DraftCounts()
        found = together(setup, requests, counts, rows=8, prefill_chunk=None, drafters=makers.__next__)
        assert found == answers
        assert counts.proposed > 20 and (counts.accepted > 20 or not copied)


class Known(Drafter):
    """Drafts the rest of a known answer, then the tokens 40, 41 and 42, which may be wrong."""

    def __init__(self, answer: list[int]) -> None:
        self._answer, self._count = answer, -1  # the first call of add passes the prompt

    def add(self, tokens: Sequence[int]) -> None:
        self._count += 1 if self._count < 0 else len(tokens)

    def propose(self, most: int) -> list[int]:
        return [*self._answer[self._count :], 40, 41, 42][: min(most, 5)]

    def learn(self, proposed: int, accepted: int) -> None:
        pass


def test_a_constraint_that_no_token_fits_ends_only_its_own_request(setup: Setup) -> None:
    tokenizer = setup[1]
    letters = tuple((token,) for token in range(320) if "l" in (tokenizer.piece(token) or ""))
    refused = Request(PROMPT, 9, Sampling(bad_words=letters), constraint=from_choices(["left"]))
    found = together(setup, [request(None, 1, count=5), refused, request(None, 2, count=5)])
    assert [reason for _, reason in found] == ["length", "refused", "length"]


class SlowMasks:
    """Holds back the mask after ``after`` tokens of each answer until ``go_on`` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int = 2) -> None:
        self.go_on, self.waits = Event(), 0
        compute = Guide._compute

        def slow(guide: Guide) -> Any:
            if len(guide._consumed) == after:
                self.waits += 1
                assert self.go_on.wait(60)
            return compute(guide)

        monkeypatch.setattr(Guide, "_compute", slow)


@pytest.mark.parametrize("speculates", [False, True])
def test_a_row_without_its_mask_waits_and_the_others_go_on(
    speculates: bool, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, free = request(from_json_schema(SCHEMA), 1), request(None, 2, count=40)
    expected = [alone(setup, each) for each in (held, free)]
    drafters = (lambda: Known(expected[0][0])) if speculates else None
    masks, waited, wait = SlowMasks(monkeypatch), list[float](), Guide.wait

    def noted_wait(guide: Guide, seconds: float) -> bool:
        waited.append(seconds)
        return wait(guide, seconds)

    monkeypatch.setattr(Guide, "wait", noted_wait)
    batcher = Batcher(setup[0], guides=setup[2], drafters=drafters)
    numbers = [batcher.submit(each) for each in (held, free)]
    tokens: dict[int, list[int]] = {number: [] for number in numbers}
    ends: dict[int, str] = {}

    def step() -> None:
        for event in batcher.step():
            if isinstance(event, Token):
                tokens[event.request].append(event.token)
            else:
                ends[event.request] = event.reason

    while numbers[1] not in ends:
        step()
    assert masks.waits == 1 and len(tokens[numbers[0]]) == 2 and (batcher.active, batcher.idle) == (1, False)
    again = batcher.submit(free)  # its prompt runs while the only other row waits
    tokens[again] = []
    while again not in ends:
        step()
    masks.go_on.set()
    while not batcher.idle:
        step()
    assert [(tokens[number], ends[number]) for number in (*numbers, again)] == [*expected, expected[1]]
    assert 0 < max(waited) < 5  # seconds: no step waited until the mask was ready


@pytest.mark.parametrize("after", [0, 2])
def test_a_row_that_waits_for_its_mask_can_be_cancelled(
    after: int, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = SlowMasks(monkeypatch, after)
    batcher = Batcher(setup[0], guides=setup[2], rows=1)
    number = batcher.submit(request(from_json_schema(SCHEMA), 1))
    while not masks.waits:
        batcher.step()
    batcher.step()
    batcher.cancel(number)
    assert Finished(number, "cancelled") in batcher.step() and batcher.idle
    masks.go_on.set()
    assert together(setup, [request(None, 2, count=5)]) == [alone(setup, request(None, 2, count=5))]


def test_clients_that_wait_take_turns(setup: Setup) -> None:
    batcher = Batcher(setup[0], rows=2)
    numbers = [batcher.submit(request(None, 1, count=4, client=name)) for name in ("a", "a", "a", "b", "b")]
    started: dict[int, None] = {}  # in the order of their first tokens
    while not batcher.idle:
        started |= {event.request: None for event in batcher.step() if isinstance(event, Token)}
    assert [numbers.index(each) for each in started] == [0, 3, 1, 4, 2]


def test_rows_that_wait_for_masks_make_room_for_other_clients_only(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = SlowMasks(monkeypatch)
    batcher = Batcher(setup[0], rows=2, guides=setup[2])
    form = from_regex("[a-f]{4,9}")
    slow = [batcher.submit(request(form, seed, client="a")) for seed in (1, 2)]
    while masks.waits < 2 or len(batcher._paused) < 2:
        batcher.step()
    later, other = (batcher.submit(request(None, 3, count=5, client=name)) for name in "ab")
    done: list[int] = []
    for _ in range(100):  # many more steps than ``other`` needs
        done += [event.request for event in batcher.step() if isinstance(event, Finished)]
    assert done == [other] and batcher.waiting == 1
    masks.go_on.set()
    _, ends = drain(batcher)
    assert set(ends) == {*slow, later}
