"""Recording a session: scenarios as rows of one batch give what each alone gives, in every way of feeding."""

import numpy as np
import pytest
import torch

from lucid_deploy.parity.record import record_at_once, record_greedy, record_together
from lucid_deploy.parity.scenarios import DRAFTS, REJECTED, SCHEDULES, Scenario, Workload, batches, synthetic_scenarios
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import assert_same, record, session


@pytest.fixture(scope="module")
def exact(model):
    return session(model, torch.float64)


@pytest.fixture(scope="module")
def scenarios(model):
    return synthetic_scenarios(model.config, Workload(steps=6), embeddings=model.model.embed_tokens.weight.numpy())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: schedule.name)
def test_scenarios_of_a_batch_are_recorded_as_each_alone(exact, scenarios, schedule):
    together = record_together(exact, scenarios, schedule)
    for scenario in scenarios:
        assert_same(together[scenario.name], record(exact, scenario, schedule))


def test_one_shot_and_in_turns_scenarios_run_alone_else_together(scenarios):
    greedy = Scenario("greedy", scenarios[0].prompt, scenarios[0].forced, greedy=True)
    every = [*scenarios, greedy]
    for schedule in SCHEDULES:
        groups = batches(every, schedule)
        if schedule.greedy_only:
            assert groups == [[greedy]]
        else:
            assert groups == ([[item] for item in every] if schedule.one_shot else [every])


@pytest.mark.parametrize(("limit", "rows"), [(1, 1), (2, 1), (3, 1), (4, 2), (7, 3), (8, 4)])
def test_batches_keep_to_what_a_runtime_takes(scenarios, limit, rows):
    for schedule in SCHEDULES[1:]:
        if schedule.greedy_only:
            assert batches(scenarios, schedule, limit) == []  # none of them is
            continue
        most = max(1, rows if schedule.padding else min(limit, 4))
        assert max(map(len, batches(scenarios, schedule, limit))) == most


def test_scenarios_fed_at_once_are_recorded_as_each_alone(exact, scenarios):
    ticks = []
    other = Scenario("shorter", scenarios[0].prompt[:9], scenarios[0].forced)  # cannot be a row of the others' batch
    together = record_at_once(exact, [other, *scenarios], lambda: ticks.append(1))
    assert len(ticks) == 4
    for scenario in [other, *scenarios]:
        assert_same(together[scenario.name], record(exact, scenario))


def test_a_prompt_of_one_token_can_be_fed_at_once_and_padded(exact):
    scenario = Scenario("short", np.array([5]), np.array([9, 2]))
    assert_same(record_at_once(exact, [scenario])["short"], record(exact, scenario))
    padded = next(schedule for schedule in SCHEDULES if schedule.padding)
    for tensor, rows in record(exact, scenario, padded).tensors.items():
        np.testing.assert_allclose(rows.values[1], rows.values[0], atol=1e-11, err_msg=str(tensor))


def generate(session, prompt, steps):
    """Greedy generation, plainly."""
    cache = session.empty_cache()
    tokens = [int(session.prefill(prompt[None], cache)[0, -1].argmax())]
    while len(tokens) < steps:
        tokens.append(int(session.decode(np.array([tokens[-1:]]), cache)[0, -1].argmax()))
    return tokens


def test_a_greedy_scenario_goes_on_with_what_the_session_generates(exact, scenarios):
    prompt, steps = scenarios[0].prompt, len(scenarios[0].forced)
    unknown = Scenario("greedy", prompt, np.zeros(steps, dtype=np.int64), greedy=True)
    (*others, greedy), traces = record_greedy(exact, [*scenarios, unknown])
    np.testing.assert_array_equal(greedy.forced, generate(exact, prompt, steps))
    assert_same(traces["greedy"], record(exact, greedy))
    for scenario, same in zip(scenarios, others, strict=True):
        np.testing.assert_array_equal(same.forced, scenario.forced)
        assert_same(traces[scenario.name], record(exact, scenario))


class Spy(TorchSession):
    """Notes the calls that reach the model: new tokens with their mask, and tokens in the cache before."""

    def __init__(self, model):
        super().__init__(model)
        self.calls = []

    def _run(self, stage, tokens, *args):
        self.calls.append((tokens.input_ids.shape, np.asarray(tokens.mask)))
        return super()._run(stage, tokens, *args)


def schedule(name):
    return next(item for item in SCHEDULES if item.name == name)


def test_the_padded_schedule_prefills_behind_a_padded_past(model, scenarios):
    """Both sides of both calls: nothing else feeds a prefill whose past has holes."""
    spy = Spy(model)
    record_together(spy, scenarios[:2], schedule("padded"))
    (first, second) = [mask for shape, mask in spy.calls if shape[1] > 1]
    assert first.shape[0] == second.shape[0] == 4
    past = first.shape[1]
    for mask in (first, second[:, past:]):
        assert {(bool(row[0]), bool(row[-1])) for row in mask} == {(False, True), (True, False)}
    assert not second[:, :past].all(axis=1).any()
    assert (second[:, :past] == first).all()


def test_drafts_are_verified_several_at_a_time_and_wrong_ones_are_taken_back(model, scenarios):
    spy = Spy(model)
    (trace,) = record_together(spy, scenarios[:1], schedule("drafts")).values()
    lengths = [shape[1] for shape, _ in spy.calls]
    assert lengths[1:] == [DRAFTS[0] + REJECTED, 3]  # 6 steps
    assert trace.logits.values.shape[1] == 1 + 6
