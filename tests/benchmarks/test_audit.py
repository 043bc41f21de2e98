"""Answers of a batch are audited: right ones pass, and each seeded fault of a batch is found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit import REPEATS, ServedAnswer, audit, repeated

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.batching.rows import MergedRows, StaticRows
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.session import Array

Exported = Callable[..., tuple[Path, Artifact]]
COUNT = 8


@pytest.fixture(params=["static", "growing"])
def session(request: pytest.FixtureRequest, exported: Exported) -> Session[Any]:
    return open_session(exported(cache=request.param)[1])


def prompts() -> list[list[int]]:
    """Six prompts that repeat few tokens, so that keys resemble each other; two begin like the first."""
    rng = np.random.default_rng(4)
    few = rng.integers(2, 97, 9)
    made = [rng.choice(few, length).tolist() for length in (44, 13, 31, 7)]
    return [*made, [*made[0][:37], 5, 90, 3], [*made[0][:40], 11]]


def serve(session: Session[Any], asked: list[Request], prefix_tokens: int = 200) -> list[ServedAnswer]:
    """Run requests in one batch, a new one starting every second step."""
    batcher, waiting = Batcher(session, 8, prefix_tokens=prefix_tokens), list(asked)
    tokens: dict[int, list[Token]] = {}
    ends: dict[int, Finished] = {}
    numbers = []
    while waiting or not batcher.idle:
        if waiting:
            numbers.append(batcher.submit(waiting.pop(0)))
        for _ in range(2):
            for event in batcher.step():
                if isinstance(event, Token):
                    tokens.setdefault(event.request, []).append(event)
                else:
                    ends[event.request] = event
    answers = []
    for number, request in zip(numbers, asked, strict=True):
        made = tokens.get(number, [])
        answers.append(
            ServedAnswer(
                tuple(request.prompt_ids),
                tuple(token.token for token in made),
                tuple(token.logprob or 0.0 for token in made),
                {"eos": "stop"}.get(ends[number].reason, ends[number].reason),
                request.max_new_tokens,
                greedy=request.sampling.temperature == 0,
                stop_at_eos=request.stop_at_eos,
            )
        )
    return answers


def greedy() -> list[Request]:
    return [Request(prompt, COUNT, stop_at_eos=False, top_logprobs=0) for prompt in prompts()]


def faults(session: Session[Any], answers: list[ServedAnswer]) -> list[str]:
    return [fault for answer in answers for fault in audit(session, answer).faults]


def test_right_answers_pass(session: Session[Any]) -> None:
    verdicts = [audit(session, answer) for answer in serve(session, greedy())]
    assert [verdict.faults for verdict in verdicts] == [()] * len(verdicts)
    assert max(verdict.worst for verdict in verdicts) > 0, "a batch rounds otherwise than a row alone"


def test_a_wrong_row_from_four_on_is_found(session: Session[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (StaticRows, MergedRows):
        original = kind.decode

        def swapped(self: Any, tokens: dict[int, int], original: Any = original) -> dict[int, Array]:
            found = original(self, tokens)
            if len(found) >= 4:
                first, second, *_ = found
                found[first], found[second] = found[second], found[first]
            return found

        monkeypatch.setattr(kind, "decode", swapped)
    assert not faults(session, serve(session, greedy()[:3]))
    assert any("alone it is" in fault for fault in faults(session, serve(session, greedy())))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"max_new_tokens": COUNT - 1}, "it has 8 tokens, of 7 asked for"),
        ({"max_new_tokens": COUNT + 1}, "it ended for its length after 8 tokens, of 9 asked for"),
        ({"reason": "stop", "stop_at_eos": True}, "it stopped after 8 tokens; alone it goes on with"),
        ({"logprobs": (-1.0,)}, "it has 8 tokens and 1 log-probabilities"),
    ],
)
def test_lengths_and_ends_are_checked(exported: Exported, changes: dict[str, Any], fault: str) -> None:
    session = open_session(exported()[1])
    [answer] = serve(session, greedy()[:1])
    changed = replace(answer, logprobs=())
    assert any(found.startswith(fault) for found in audit(session, replace(changed, **changes)).faults)


def test_an_answer_that_goes_on_behind_its_end_is_found(exported: Exported) -> None:
    session = open_session(exported()[1])
    [answer] = serve(session, greedy()[:1])
    end = session.config.eos_token_ids[0]
    changed = replace(answer, tokens=(*answer.tokens[:3], end, *answer.tokens[4:]), logprobs=(), stop_at_eos=True)
    assert "it goes on behind an end-of-sequence token" in audit(session, changed).faults


def test_drawn_answers_differ_and_a_kept_one_is_found(exported: Exported) -> None:
    session = open_session(exported()[1])
    request = Request(prompts()[0], COUNT, Sampling(temperature=1.0), stop_at_eos=False, top_logprobs=0)
    answers = serve(session, [request] * REPEATS)
    assert not repeated(answers) and not faults(session, answers)
    assert repeated(answers[:1] * REPEATS) == [
        "3 answers to one prompt of 44 tokens, each drawn at random, are the same"
    ]
