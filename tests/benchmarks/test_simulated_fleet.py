"""The simulation of a fleet on small days: nothing is lost, and what can be computed by hand comes out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated_fleet import POLICIES, FleetOptions, block_numbers, least_loaded, round_robin, simulate, summary
from simulated_replica import Ask, Replica, StepTimes
from simulated_trace import Session, TraceOptions, Turn, make_trace

from lucid_deploy.serving.prefix_routing import BLOCK, block_names

TIMES = StepTimes(0.001, 1e-7, (1, 2, 4, 8), (0.02, 0.023, 0.028, 0.04))
SMALL = TraceOptions(sessions=600, applications=6)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("replicas", [1, 3])
def test_every_request_is_answered_or_refused_once(policy: str, replicas: int) -> None:
    """On a busy day with short queues: each turn that comes is counted once, and a refused one is a session's last."""
    day = [replace(session, start=session.start / 200) for session in make_trace(SMALL)]
    out = simulate(day, TIMES, FleetOptions(replicas, rows=2, max_queue=1), policy)
    seen = [(ask.session.number, ask.turn) for ask in (*out.answered, *out.refused)]
    assert len(set(seen)) == len(seen)
    last = {ask.session.number: ask.turn for ask in out.refused}
    expected = {(s.number, turn) for s in day for turn in range(last.get(s.number, len(s.turns) - 1) + 1)}
    assert set(seen) == expected
    assert len(out.refused) > 20
    for ask in out.answered:
        assert ask.asked < ask.first <= ask.ended
        assert 0 <= ask.reused < ask.prompt == ask.session.turns[ask.turn].prompt
    for earlier, later in zip(out.answered, out.answered[1:], strict=False):
        assert earlier.ended <= later.ended
    assert 0 < out.busy <= replicas * out.last


def test_a_lone_request_takes_its_prompt_and_its_steps() -> None:
    day = [Session(0, 0, 300, 5.0, (Turn(1300, 20, 0.0),))]
    ask = simulate(day, TIMES, FleetOptions(1), "prefix").answered[0]
    prompt = 0.001 * 1300 + 1e-7 * 1300**2
    assert ask.first - ask.asked == pytest.approx(prompt + 0.02)  # the step of its last chunk decodes, too
    assert ask.ended - ask.asked == pytest.approx(prompt + 19 * 0.02)


def test_one_row_is_a_queue_with_a_closed_form() -> None:
    """Prompts of one length, answers of one token, Poisson arrivals: M/D/1, mean wait s · load / (2 (1 − load)).

    Each wait is Lindley's: the one before, plus a service, less the time between, and at least 0. Correlation of waits
    leaves the mean of 40,000 a standard error of about 2 %.
    """
    service, load, count = 0.1, 0.5, 10_000
    times = StepTimes(0.001, 0.0, (1,), (1.0,))
    means = []
    for seed in range(4):
        starts = np.cumsum(np.random.default_rng(seed).exponential(service / load, count))
        day = [Session(i, i, 0, float(start), (Turn(100, 1, 0.0),)) for i, start in enumerate(starts)]
        fleet = FleetOptions(1, rows=1, max_queue=count, chunk=100, prefix_tokens=0)  # one prompt a step
        out = simulate(day, times, fleet, "round robin")
        waits = np.array([ask.first - ask.asked - service for ask in out.answered])
        lindley = [0.0]
        for between in np.diff(starts):
            lindley.append(max(0.0, lindley[-1] + service - between))
        np.testing.assert_allclose(waits, lindley, atol=1e-6)
        means.append(waits.mean())
        assert out.busy == pytest.approx(count * service)
    assert np.mean(means) == pytest.approx(service * load / (2 * (1 - load)), rel=0.08)


def test_one_replica_is_the_same_for_every_rule() -> None:
    day = make_trace(SMALL)
    first, *others = (summary(simulate(day, TIMES, FleetOptions(1), policy), 1) for policy in POLICIES)
    assert all(other == first for other in others)


@pytest.mark.parametrize("seed", range(4))
def test_routing_by_prefix_hits_no_less_than_the_others(seed: int) -> None:
    day = make_trace(replace(SMALL, seed=seed, sessions=300))
    for replicas in (1, 2, 5, 16):
        fleet = FleetOptions(replicas, prefix_tokens=8192, seed=seed)
        rates = {policy: summary(simulate(day, TIMES, fleet, policy), replicas)["hit_rate"] for policy in POLICIES}
        assert rates["prefix"] >= max(rates["round robin"], rates["least loaded"])
        if replicas > 2:
            assert rates["prefix"] > 1.2 * rates["round robin"]


def test_nothing_is_hit_without_a_store() -> None:
    day = make_trace(replace(SMALL, sessions=50))
    assert summary(simulate(day, TIMES, FleetOptions(2, prefix_tokens=0), "prefix"), 2)["hit_rate"] == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_seeds_reproduce(policy: str) -> None:
    fleet = FleetOptions(4, seed=7)
    first, second = (summary(simulate(make_trace(SMALL), TIMES, fleet, policy), 4) for _ in range(2))
    assert first == second
    if policy != "round robin":
        other = summary(simulate(make_trace(SMALL), TIMES, replace(fleet, seed=8), policy), 4)
        assert other != first


def test_blocks_are_equal_where_the_routers_are() -> None:
    """Texts as tokens: an application's beginning, then the session's own; names agree pair by pair."""
    rng = np.random.default_rng(0)
    asks: list[Ask] = []
    texts: list[list[int]] = []
    for number in range(12):
        application, system = number % 3, (100, 64, 31)[number % 3]
        for length in rng.integers(system + 1, 400, 3):
            session = Session(number, application, system, 0.0, (Turn(int(length), 1, 0.0),))
            asks.append(Ask(session, 0, int(length), 1, 0.0))
            texts.append([application] * system + [1000 + number] * (int(length) - system))
    shared = 0
    for ask, text in zip(asks, texts, strict=True):
        for other, words in zip(asks, texts, strict=True):
            ours = len(set(block_numbers(ask)) & set(block_numbers(other)))
            assert ours == len(set(block_names(text)) & set(block_names(words)))
            shared += bool(ours) and ask.session.number != other.session.number
    assert shared > 10
    assert len(block_numbers(asks[0])) == asks[0].prompt // BLOCK


def test_rules() -> None:
    fleet, replicas = FleetOptions(3), [Replica(TIMES, 8, 64, 512, 0) for _ in range(3)]
    ask = Ask(Session(0, 0, 0, 0.0, (Turn(1, 1, 0.0),)), 0, 1, 1, 0.0)
    turn = round_robin(fleet)
    assert [turn(ask, replicas) for _ in range(4)] == [0, 1, 2, 0]
    replicas[0].take(ask)
    least = least_loaded(fleet)
    assert {least(ask, replicas) for _ in range(50)} == {1, 2}
