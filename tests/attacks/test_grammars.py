"""A grammar that parses one text in many ways ends with an error, and slows down nobody else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.errors import LucidError
from lucid_deploy.generation import guide
from lucid_deploy.generation.constraint import from_grammar
from lucid_deploy.generation.generate import Generation
from lucid_deploy.generation.guide import GuideFactory
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes import open_session
from tests.attacks.attack_tools import ATTACKER, KEY, OtherClient, completion, head, many, talk
from tests.serving.serving_tools import Server

HOSTILE = 'start: e\ne: e e | e e e | "a" | "b"'  # the masks of n tokens take a time that grows with n³
PROMPT = [40, 41, 40, 41, 70]
Made = tuple[Any, GuideFactory]


@pytest.fixture(scope="module")
def made(with_byte_level_tokenizer: Callable[..., tuple[Path, Artifact]]) -> Made:
    _, artifact = with_byte_level_tokenizer()
    session = open_session(artifact)
    return session, GuideFactory(TextTokenizer(artifact.directory), session.config.vocab_size, [])


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "MASK_SECONDS", 0.3)
    monkeypatch.setattr(guide, "MASK_SECONDS_PER_TOKEN", 0.0)


def test_an_ambiguous_grammar_ends_with_an_error(made: Made) -> None:
    session, guides = made
    running = Generation(session, PROMPT, 400, guide=guides.open(from_grammar(HOSTILE)).result())
    started = time.thread_time()
    with pytest.raises(LucidError, match=r"constraint is too costly: after \d+ tokens it had taken more than 0\.3 s"):
        list(running)
    assert time.thread_time() - started < 30


def test_ambiguous_grammars_do_not_stop_other_rows(made: Made) -> None:
    session, guides = made
    free = Request(PROMPT, 200, Sampling(1.5, seed=1), stop_at_eos=False)
    expected = list(Generation(session, free.prompt_ids, 200, free.sampling, stop_at_eos=False))
    batcher = Batcher(session, guides=guides)
    hostile = [batcher.submit(Request(PROMPT, 400, constraint=from_grammar(HOSTILE))) for _ in range(3)]
    number = batcher.submit(free)
    tokens: dict[int, list[int]] = {each: [] for each in (*hostile, number)}
    ends: dict[int, Finished] = {}
    longest, last = 0.0, time.monotonic()
    while not batcher.idle:
        for event in batcher.step():
            if isinstance(event, Finished):
                ends[event.request] = event
                continue
            assert isinstance(event, Token)
            tokens[event.request].append(event.token)
            if event.request == number:
                longest, last = max(longest, time.monotonic() - last), time.monotonic()
    assert tokens[number] == expected and ends[number].reason == "length"
    assert {ends[each].reason for each in hostile} == {"refused"}
    assert all("too costly" in (ends[each].error or "") for each in hostile)
    assert longest < 2


def test_costly_grammars_of_one_key_do_not_keep_another_waiting(keyed_server: Server) -> None:
    """There are more such requests than rows; a request that waits for its mask leaves its row to the other key."""
    grammar = 'start: e\ne: e e | e e e | "owl " | "has "'
    request = completion(ATTACKER, guided_grammar=grammar, max_tokens=400, ignore_eos=True)
    with OtherClient(keyed_server), many(keyed_server, 12, request) as connections:
        time.sleep(4.0)
        text = talk(keyed_server, head("/metrics", "GET", authorization=f"Bearer {KEY}", connection="close")).decode()
        assert float(text.partition("\nlucid_active_rows ")[2].split()[0]) >= 8
        connections[0].settimeout(0.1)
        with pytest.raises(TimeoutError):  # the costly requests still run
            connections[0].recv(1)


def test_a_grammar_of_sixty_thousand_alternatives_is_refused_at_once() -> None:
    began = time.process_time()
    with pytest.raises(LucidError, match=r"has 59999 alternatives and lines; at most 10000 are compiled\.$"):
        from_grammar("start: " + " | ".join(f'"w{i} "' for i in range(60_000)))
    assert time.process_time() - began < 1.0
