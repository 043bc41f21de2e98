"""Scenarios are repeatable, fit the context, and hold what they promise; schedules cover every token once."""

from dataclasses import replace

import numpy as np
import pytest

from lucid_deploy.parity.scenarios import PADDING, SCHEDULES, Scenario, fit_lengths, synthetic_scenarios
from tests.parity.small_models import VOCAB, small_config


def test_what_the_scenarios_hold():
    scenarios = {s.name: s for s in synthetic_scenarios(small_config())}
    tokens = {name: np.concatenate([s.prompt, s.forced]) for name, s in scenarios.items()}
    assert all(len(s.prompt) == 250 and len(s.forced) == 32 for s in scenarios.values())
    assert all((ids >= 0).all() and (ids < VOCAB).all() for ids in tokens.values())
    assert len(set(tokens["random"])) > 50
    assert len(set(tokens["one token"][32:])) == 1
    np.testing.assert_array_equal(tokens["one token"][:32:2], tokens["one token"][1:32:2])
    np.testing.assert_array_equal(tokens["pattern"][7:], tokens["pattern"][:-7])
    assert 2 < len(set(tokens["correlated"])) <= 8


def test_correlated_tokens_are_neighbours_in_the_embedding():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(VOCAB, 16))
    close = rng.choice(VOCAB, size=8, replace=False)
    embeddings[close] = embeddings[close[0]] + 0.01 * rng.normal(size=(8, 16))
    embeddings[next(i for i in range(VOCAB) if i not in close)] = 0  # no direction, no warning
    found = set()
    for seed in range(30):
        scenario = synthetic_scenarios(small_config(), seed=seed, embeddings=embeddings)[-1]
        found.add(frozenset(scenario.prompt) == frozenset(close))
    assert True in found  # whenever the drawn centre is one of the close tokens
    with np.errstate(all="raise"):
        synthetic_scenarios(small_config(), embeddings=embeddings)


@pytest.mark.parametrize(
    ("limit", "steps", "expected"),
    [
        (2048, 32, (250, 32)),
        (2048, 100, (250, 100)),
        (287, 32, (250, 32)),
        (286, 32, (249, 32)),
        (64, 32, (27, 32)),
        (40, 32, (8, 27)),  # a longer prompt is worth more than the last decode steps
        (7, 32, (1, 1)),
    ],
)
def test_lengths_fit_the_context(limit, steps, expected):
    assert fit_lengths(limit, steps) == expected
    assert sum(expected) + PADDING <= limit


def named(name):
    return next(schedule for schedule in SCHEDULES if schedule.name == name)


def feeds(schedule, greedy):
    """The positions at which a whole scenario is decoded, and the slices that are prefilled."""
    prompt, steps = fit_lengths(2048)
    fed = schedule.fed(Scenario("", np.arange(prompt), np.arange(steps), greedy=greedy))
    parts = schedule.parts(len(fed.prompt))
    decoded = {i for part in parts if part.decoded for i in range(2048)[part.tokens]}
    return decoded | set(range(len(fed.prompt), fed.length)), [part.tokens for part in parts if not part.decoded]


@pytest.mark.parametrize("block", [128, 256])
def test_both_graphs_cross_the_ends_of_blocks_alone_and_with_a_cache_behind(block):
    """In a batch of one, that is one-shot and in turns; several rows go by token and in chunks."""
    alone = [feeds(schedule, True) for schedule in SCHEDULES if schedule.one_shot or schedule.greedy_only]
    assert any({block - 1, block} <= decoded for decoded, _ in alone)
    prefilled = [part for _, parts in alone for part in parts]
    prefilled += feeds(SCHEDULES[0], False)[1]
    assert any(part.start < block < part.stop for part in prefilled)
    assert any(0 < part.start < block < part.stop for part in feeds(named("chunks"), False)[1])
    assert {block - 1, block} <= feeds(named("by token"), False)[0]


def test_the_greedy_scenario_alone_is_fed_in_turns():
    greedy = Scenario("", np.arange(3), np.arange(3), greedy=True)
    other = Scenario("", np.arange(3), np.arange(3))
    once = Scenario("", np.arange(3), np.arange(3), one_shot_only=True)
    made = replace(greedy, alone=True)  # not a prompt that the user gave
    taken = {schedule.name: [schedule.takes(each) for each in (greedy, made, other, once)] for schedule in SCHEDULES}
    assert taken.pop("one-shot") == [True, True, True, True]
    assert taken.pop("in turns") == [True, True, False, False]
    assert set(map(tuple, taken.values())) == {(True, False, True, False)}


def test_all_steps_are_decoded_token_by_token_and_one_shot_where_they_are_read_off_it():
    assert [schedule.name for schedule in SCHEDULES if schedule.steps is None] == ["by token"]
    for changes in ({"greedy": True}, {"one_shot_only": True}):
        scenario = Scenario("", np.arange(10), np.arange(20), **changes)
        whole = [schedule.name for schedule in SCHEDULES if len(schedule.fed(scenario).forced) == 20]
        assert whole == ["one-shot", "by token"]
