"""Targets: one reference for every schedule, gates that are narrow, and passes through PyTorch that are shared."""

import numpy as np
import pytest
import torch

from lucid_deploy.parity.gate import FLOOR_UNITS, UNIT
from lucid_deploy.parity.metrics import position_errors
from lucid_deploy.parity.record import TensorId, record_greedy
from lucid_deploy.parity.scenarios import SCHEDULES, Workload, synthetic_scenarios
from lucid_deploy.parity.targets import prepare
from tests.parity.small_models import assert_same, record, session, small_model

Y0 = TensorId(0, 1)


def test_in_float64_every_schedule_is_the_same_function():
    """What lets one reference serve all schedules. 1e-13 is some hundred roundings of float64 (1.1e-16 each)."""
    model = small_model(max_position_embeddings=180, num_hidden_layers=2)
    reference = session(model, torch.float64)
    for scenario in synthetic_scenarios(model.config, Workload(steps=4)):
        one_shot = record(reference, scenario)
        for schedule in SCHEDULES:
            other = record(reference, scenario, schedule)
            for tensor, rows in one_shot.tensors.items():
                errors = position_errors(other.tensors[tensor].values, rows.values, tensor.accumulated)
                assert errors.max() < 1e-13, (scenario.name, schedule.name, str(tensor))


def test_the_gates_are_narrow(targets):
    """In float32 at most 1e-4 anywhere: a fault that shows in the fourth digit cannot pass."""
    limits = [gate.limit for target in targets.items for gate in target.gates.values()]
    assert FLOOR_UNITS * UNIT["float32"] <= min(limits)
    assert max(limits) < 1e-4


def test_a_scenario_of_few_tokens_takes_the_widest_gate(model):
    """Its own gates may be narrow by luck: 3 tokens and one that repeats are a handful of rounding errors."""
    sources = session(model), session(model, torch.float64)
    targets = prepare(*sources, workload=Workload(steps=8), prompt=np.array([1, 2, 3]))
    *others, short = targets.items
    assert short.scenario.name == "prompt"
    one_token = next(target for target in others if target.scenario.few_draws)
    for tensor in short.gates:
        widest = max(target.gates[tensor].limit for target in others)
        assert min(short.gates[tensor].limit, one_token.gates[tensor].limit) >= widest
    own = [target.gates[Y0] for target in others if target is not one_token]
    assert len(set(own)) == len(own) == 3  # these keep theirs


def test_one_token_over_and_over_has_the_gates_of_all(model, targets):
    """Where few rows amplify errors its own gate is luck: seen, 5.8 times the baseline's error in a right candidate."""
    assert [item.scenario.name for item in targets.items if item.scenario.few_draws] == ["one token"]
    for item in targets.items:
        if item.scenario.few_draws:
            for tensor, gate in item.gates.items():
                assert gate.limit == max(other.gates[tensor].limit for other in targets.items)


def test_a_greedy_scenario_goes_on_as_the_baseline_does(model):
    baseline = session(model)
    target = prepare(baseline, session(model, torch.float64), workload=Workload(steps=6)).items[-1]
    (again,), traces = record_greedy(baseline, [target.scenario])
    np.testing.assert_array_equal(target.scenario.forced, again.forced)
    np.testing.assert_array_equal(traces[again.name].logits.values[0, :-1].argmax(axis=-1), again.forced)
    assert_same(target.reference, record(session(model, torch.float64), target.scenario))


def test_the_reference_must_be_float64(model):
    with pytest.raises(ValueError, match="float64"):
        prepare(session(model), session(model), workload=Workload(steps=2))
