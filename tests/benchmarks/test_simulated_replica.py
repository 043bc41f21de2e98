"""The simulated replica against the batcher and the store that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated_replica import Ask, PrefixModel, Replica, StepTimes
from simulated_trace import Session, Turn

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import Batcher, Finished, Request, Token
from lucid_deploy.generation.prefix_store import PrefixStore
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Cache

Exported = Callable[..., tuple[Path, Artifact]]
Asked = list[tuple[float, int, int]]  # when, tokens of the prompt, tokens of the answer
TIMES = StepTimes(0.001, 1e-6, (1, 2, 4), (0.02, 0.03, 0.04))


def test_times_are_fitted() -> None:
    prompts = [(n, 0.001 * n + 1e-6 * n * n) for n in (512, 1024, 2048)]
    fitted = StepTimes.fit(prompts, [(4, 0.04), (1, 0.02), (2, 0.03)])
    assert (fitted.linear, fitted.quadratic) == pytest.approx((0.001, 1e-6), rel=1e-9)
    assert (fitted.rows, fitted.decode) == (TIMES.rows, TIMES.decode)
    assert [fitted.step(rows) for rows in (1, 2, 3, 4, 8)] == pytest.approx([0.02, 0.03, 0.035, 0.04, 0.08])


def test_a_prompt_in_parts_takes_as_long_as_whole() -> None:
    parts = TIMES.prompt(0, 100) + TIMES.prompt(100, 37) + TIMES.prompt(137, 1)
    assert parts == pytest.approx(TIMES.prompt(0, 138))
    assert parts == pytest.approx(0.138 + 1e-6 * 138**2)


def session(number: int, application: int = 0, system: int = 3) -> Session:
    return Session(number, application, system, 0.0, (Turn(1, 1, 0.0),))


class CountingSession:
    """The operations on caches that a store needs, on caches without layers."""

    layout: tuple[Any, ...] = ()

    def fork(self, cache: Cache[Any]) -> Cache[Any]:
        return Cache(cache.mask.copy(), [])

    def truncate(self, cache: Cache[Any], length: int) -> None:
        cache.mask = cache.mask[:, :length]


@pytest.mark.parametrize("seed", range(5))
def test_the_store_finds_what_the_real_one_finds(seed: int) -> None:
    """Texts of 12 sessions of 3 applications grow, in any order, in a store with room for few of them."""
    rng = np.random.default_rng(seed)
    counting: Any = CountingSession()
    real, model = PrefixStore(counting, 60), PrefixModel(60)
    systems = [3, 0, 7]
    sessions = [session(i, i % 3, systems[i % 3]) for i in range(12)]
    lengths = [one.system + 1 for one in sessions]
    hits = 0
    for _ in range(400):
        i = int(rng.integers(len(sessions)))
        one = sessions[i]
        lengths[i] = min(lengths[i] + int(rng.integers(0, 3)), 70)
        text = [100 + one.application] * one.system + [1000 * (1 + i) + k for k in range(lengths[i] - one.system)]
        most = len(text) - 1
        cache = real.find(text, most)
        found = 0 if cache is None else cache.length
        assert model.find(one, most) == found
        hits += found > one.system
        real.add(text, Cache(np.ones((1, len(text)), dtype=bool), []))
        model.add(one, len(text))
    assert hits > 20


class Real:
    """The batcher on the bundled model, with a clock that shows the times that the simulation has."""

    def __init__(self, artifact: Artifact, rows: int, chunk: int) -> None:
        self.now = 0.0
        opened = open_session(artifact)
        run = opened.prefill

        def prefill(ids: Any, cache: Any = None, *rest: Any) -> Any:
            self.now += TIMES.prompt(0 if cache is None else cache.length, ids.shape[1])
            return run(ids, cache, *rest)

        opened.prefill = prefill  # type: ignore[method-assign]
        self.batcher = Batcher(opened, rows, chunk)

    def run(self, asked: Asked) -> list[tuple[float, float]]:
        """Run requests; return when each gave its first token and when it ended."""
        first, end, waiting = [0.0] * len(asked), [0.0] * len(asked), list(asked)
        while waiting or not self.batcher.idle:
            if self.batcher.idle:
                self.now = max(self.now, waiting[0][0])
            while waiting and waiting[0][0] <= self.now:
                _, prompt, answer = waiting.pop(0)
                self.batcher.submit(Request([5] * prompt, answer, stop_at_eos=False))
            events = self.batcher.step()
            firsts = {mark.request for mark in self.batcher.marks if mark.phase == "decode"}
            decoded = sum(isinstance(event, Token) for event in events) - len(firsts)
            self.now += TIMES.step(decoded) if decoded else 0.0
            for number in firsts:
                first[number] = self.now
            for event in events:
                if isinstance(event, Finished):
                    end[event.request] = self.now
        return list(zip(first, end, strict=True))


def simulated(asked: Asked, rows: int, chunk: int) -> list[tuple[float, float]]:
    replica, waiting = Replica(TIMES, rows, 100, chunk, 0), list(asked)
    out: list[Ask] = []
    while waiting or replica.stretch is not None:
        end = replica.stretch.end if replica.stretch is not None else float("inf")
        if waiting and waiting[0][0] < end:
            now, prompt, answer = waiting.pop(0)
            out.append(Ask(session(len(out)), 0, prompt, answer, now))
            assert replica.take(out[-1])
            if replica.stretch is None:
                replica.begin(now)
            else:
                replica.cut(now)
        else:
            replica.end()
            replica.begin(end)
    return [(ask.first, ask.ended) for ask in out]


@pytest.mark.parametrize(("rows", "chunk", "gap"), [(1, 16, 0.05), (3, 16, 0.05), (3, 7, 0.02), (4, 64, 0.2)])
def test_work_is_done_in_the_order_of_the_batcher(exported: Exported, rows: int, chunk: int, gap: float) -> None:
    rng = np.random.default_rng(rows * chunk)
    arrivals = np.cumsum(rng.exponential(gap, 25))
    asked = [(float(at), int(rng.integers(1, 40)), int(rng.integers(1, 12))) for at in arrivals]
    expected = Real(exported(cache="static")[1], rows, chunk).run(asked)
    np.testing.assert_allclose(simulated(asked, rows, chunk), expected, rtol=1e-9)


def test_a_full_queue_refuses() -> None:
    replica = Replica(TIMES, 2, 1, 16, 0)
    taken = [replica.take(Ask(session(i), 0, 5, 5, 0.0)) for i in range(4)]
    assert (taken, replica.load) == ([True, True, True, False], 3)
