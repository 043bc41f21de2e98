"""Conversations share stored prefixes while others evict them; each answer is that of a run without a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.generation.drafting import LookupDrafter
from lucid_deploy.generation.prefix_store import BLOCK
from lucid_deploy.generation.sampling import Sampling
from lucid_deploy.runtimes import Session, open_session
from tests.batching.draining import drain
from tests.batching.test_batcher import alone, prompt
from tests.conftest import MIXED
from tests.generation.store_integrity import check_integrity

CHUNK = 48  # every second multiple of 48 is a border of blocks
Opened = Callable[[str], Session[Any]]


@pytest.fixture(scope="module")
def opened(exported: Callable[..., tuple[Path, Artifact]], hybrid: Callable[..., Artifact]) -> Opened:
    """Return a function that opens a session in float32: with rows alone, with windows or with states as well."""
    made = {
        "static": lambda: exported(cache="static")[1],
        "growing": lambda: exported(cache="growing")[1],
        "windows": lambda: exported(cache="static", **MIXED)[1],
        "states": lambda: hybrid(cache="static"),
    }
    return lambda name: open_session(made[name]())


class Talk:
    """Sends requests that continue earlier texts of their owner; compares all answers with runs without a store."""

    def __init__(self, session: Session[Any], batcher: Batcher) -> None:
        self.session, self.batcher, self.draw = session, batcher, np.random.default_rng(0)
        self.texts = {owner: [[token % 60 for token in prompt(40, seed)]] for seed, owner in enumerate("ab")}
        self.running: dict[int, Request] = {}
        self.tokens: dict[int, list[int]] = {}
        self.checked = self.cancelled = 0

    def ask(self) -> None:
        owner = "ab"[int(self.draw.integers(2))]
        text = self.texts[owner][int(self.draw.integers(len(self.texts[owner])))]
        more = [int(token) for token in self.draw.integers(2, 60, int(self.draw.integers(1, 30)))]
        seed = int(self.draw.integers(1000))
        sampling = Sampling(1.2, 20, 0.9, seed) if seed % 3 else Sampling()
        ids = [*text[: len(text) - int(self.draw.integers(3)) * 7], *more, *more[:9]]  # with repeated tokens
        ids, count = [token % 60 for token in ids[:170]], int(self.draw.integers(1, 9))
        request = Request(ids, count, sampling, stop_at_eos=False, cache_owner=owner)
        number = self.batcher.submit(request)
        self.running[number], self.tokens[number] = request, []

    def step(self) -> None:
        for event in self.batcher.step():
            if isinstance(event, Token):
                self.tokens[event.request].append(event.token)
            elif isinstance(event, Finished):
                self._finish(event)
        check_integrity(self.batcher.store)

    def _finish(self, end: Finished) -> None:
        request, tokens = self.running.pop(end.request), self.tokens.pop(end.request)
        whole, reason = alone(self.session, request, CHUNK)
        if end.reason == "cancelled":
            self.cancelled += 1
            assert tokens == whole[: len(tokens)]
        else:
            self.checked += 1
            assert (tokens, end.reason) == (whole, reason)
        texts = self.texts[request.cache_owner]
        texts.append([*request.prompt_ids, *tokens])
        del texts[1:-6]  # so that new requests branch from the first text and the newest six


@pytest.mark.parametrize(
    ("kind", "turns", "blocks"), [("static", 250, 7), ("growing", 30, 7), ("windows", 40, 12), ("states", 24, 24)]
)
def test_evicted_blocks_change_no_branching_conversation(kind: str, turns: int, blocks: int, opened: Opened) -> None:
    session = opened(kind)
    drafters = LookupDrafter if session.multi_token_unsupported_reason is None else None
    batcher = Batcher(session, 3, CHUNK, blocks * BLOCK, drafters=drafters)
    talk = Talk(session, batcher)
    for turn in range(turns):
        talk.ask()
        if turn % 5 == 4:
            batcher.cancel(int(talk.draw.choice(list(talk.running))))  # waiting, in the middle of its prompt, or later
        for _ in range(int(talk.draw.integers(1, 5))):
            talk.step()
    while not batcher.idle:
        talk.step()
    assert talk.checked > turns // 2 and talk.cancelled > turns // 20 and batcher.store.readers == 0
    assert batcher.prompt_tokens_reused > 20 * turns // (2 if kind == "static" else 4)


@pytest.mark.parametrize("kind", ["windows", "states"])
def test_prompts_with_windows_or_states_continue_from_a_stored_block_border(kind: str, opened: Opened) -> None:
    session = opened(kind)
    batcher = Batcher(session, rows=2, prefill_chunk=CHUNK, prefix_tokens=2000)
    first = Request([token % 60 for token in prompt(120)], 10, stop_at_eos=False)
    batcher.submit(first)
    answer = drain(batcher)[0][0]
    next_turn = Request([*first.prompt_ids, *answer, 5, 6], 9, stop_at_eos=False)
    fork = Request([*first.prompt_ids[:100], 7, 7, 7], 9, stop_at_eos=False)
    for request, reused in ((next_turn, 96), (fork, 96), (Request([*first.prompt_ids[:60], 3, 3], 4), 0)):
        before = batcher.prompt_tokens_reused
        number = batcher.submit(request)
        tokens, _ = drain(batcher)
        assert tokens.get(number, []) == alone(session, request, CHUNK)[0]
        assert batcher.prompt_tokens_reused - before == reused


def test_a_cancelled_prompt_releases_its_stored_blocks(opened: Opened) -> None:
    batcher = Batcher(opened("static"), rows=2, prefill_chunk=16, prefix_tokens=4 * BLOCK)
    text = prompt(4 * BLOCK)
    batcher.submit(Request(text, 1, stop_at_eos=False))
    drain(batcher)
    number = batcher.submit(Request([*text, *prompt(100)], 5))
    batcher.step()
    assert batcher.store.readers == 4
    batcher.submit(Request(prompt(3 * BLOCK, seed=1), 1, stop_at_eos=False))  # would evict those blocks
    batcher.step()
    batcher.cancel(number)
    drain(batcher)
    assert batcher.prompt_tokens_reused == 4 * BLOCK
