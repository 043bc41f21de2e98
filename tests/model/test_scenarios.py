"""Scenarios are repeatable, fit the context, and hold what they promise; schedules cover every token once."""

import numpy as np
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.model.scenarios import (
    PADDING,
    SCHEDULES,
    Scenario,
    Schedule,
    fit_lengths,
    greedy_prompt,
    synthetic_scenarios,
)
from tests.parity.small_models import VOCAB, small_config


def test_equal_seeds_give_equal_tokens():
    config = small_config()
    first, again, other = (synthetic_scenarios(config, seed=seed) for seed in (3, 3, 4))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a.prompt, b.prompt)
        np.testing.assert_array_equal(a.forced, b.forced)
    assert any((a.prompt != b.prompt).any() for a, b in zip(first, other, strict=True))


def test_what_the_scenarios_hold():
    scenarios = {s.name: s for s in synthetic_scenarios(small_config(), steps=32)}
    tokens = {name: np.concatenate([s.prompt, s.forced]) for name, s in scenarios.items()}
    assert all(len(s.prompt) == 300 and len(s.forced) == 32 for s in scenarios.values())
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
        (2048, 32, (300, 32)),
        (2048, 100, (300, 100)),
        (337, 32, (300, 32)),
        (336, 32, (299, 32)),
        (64, 32, (27, 32)),
        (40, 32, (8, 27)),  # a longer prompt is worth more than the last decode steps
        (7, 32, (1, 1)),
    ],
)
def test_lengths_fit_the_context(limit, steps, expected):
    assert fit_lengths(limit, steps) == expected
    assert sum(expected) + PADDING <= limit


@pytest.mark.parametrize(("limit", "steps"), [(6, 32), (100, 0), (100, -1)])
def test_lengths_that_cannot_be(limit, steps):
    with pytest.raises(LucidError):
        fit_lengths(limit, steps)


def test_a_real_prompt_takes_what_room_there_is():
    config = small_config(max_position_embeddings=20)
    name, ids, steps = greedy_prompt(config, 32, seed=0, prompt=np.arange(10))
    assert (name, len(ids), steps) == ("prompt", 10, 5)


@pytest.mark.parametrize("length", [0, 15, 400])
def test_a_real_prompt_that_does_not_fit(length):
    with pytest.raises(LucidError, match="prompt"):
        greedy_prompt(small_config(max_position_embeddings=20), 32, seed=0, prompt=np.zeros(length, dtype=np.int64))


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 35, 300])
@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if not s.token_by_token], ids=lambda s: s.name)
def test_chunks_cover_every_token_once(schedule, tokens):
    covered = [i for part in schedule.parts(tokens) for i in range(tokens)[part]]
    assert covered == list(range(tokens))


def test_chunk_sizes_take_turns():
    parts = Schedule("", chunks=(1, 7, 64)).parts(100)
    assert [part.stop - part.start for part in parts] == [1, 7, 64, 1, 7, 20]


@pytest.mark.parametrize(("steps", "decoded"), [(20, 8), (8, 8), (3, 3)])
def test_tokens_that_are_not_decoded_are_fed_with_the_prompt(steps, decoded):
    scenario = Scenario("x", np.arange(10), np.arange(10, 10 + steps))
    fed = Schedule("", chunks=(7,), steps=8).fed(scenario)
    assert len(fed.forced) == decoded
    np.testing.assert_array_equal(fed.ids, scenario.ids)
    assert Schedule("", chunks=(7,), steps=8).calls(scenario) == -(-(10 + steps - decoded) // 7) + decoded


def test_one_shot_and_token_by_token_all_steps_are_decoded():
    assert [schedule.name for schedule in SCHEDULES if schedule.steps is None] == ["one-shot", "by token"]
