"""Own errors of layers, with small PyTorch models."""

import copy

import numpy as np
import pytest
import torch

from lucid_deploy.parity.gate import Gate
from lucid_deploy.parity.own_errors import (
    WorstOwnError,
    findings,
    look_inside,
    own_errors,
    own_gates,
    parts_of,
)
from lucid_deploy.parity.record import TensorId
from lucid_deploy.parity.targets import explained_scenarios
from tests.parity.small_models import layers


def nothing():
    pass


@pytest.fixture(scope="module")
def inside(model, targets):
    target = explained_scenarios(targets)[0]
    return look_inside(layers(model, torch.float64), target.scenario, target.reference)


def test_the_insides_are_what_sessions_record(targets, inside):
    target = explained_scenarios(targets)[0]
    for tensor, rows in target.reference.tensors.items():
        if not tensor.is_logits:
            rows_inside = parts_of(inside.states, inside.layers)[tensor]
            np.testing.assert_allclose(rows_inside, rows.values, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(inside.states.logits[:, 0], inside.logits[:, -1], rtol=1e-8, atol=1e-9)


def test_the_reference_has_no_own_error(model, inside):
    for feedings in own_errors(layers(model, torch.float64), inside, nothing).values():
        assert set(feedings) == {"one prefill", "prefill after a past", "padded prefill", "decode"}
        assert max(errors.max() for _, errors in feedings.values()) < 1e-11


def test_own_gates_are_derived(model, inside):
    own = own_errors(layers(model), inside, nothing)
    for part, gate in own_gates(own, "float32").items():
        worst = max(errors.max() for _, errors in own[part].values())
        assert gate.limit == max(4 * worst, 2 * 2.0**-23)


def test_a_part_that_is_lost_to_pytorch_too_is_not_judged():
    own = {TensorId(0, 0): {"decode": (np.array([3, 4]), np.array([0.5, 1.5]))}}
    (found,) = findings(own, {TensorId(0, 0): Gate(8.0, 2.0)}, "random")
    assert (found.failed, found.judged) == (False, False)
    (found,) = findings(own, {TensorId(0, 0): Gate(0.9, 0.225)}, "random")
    assert (found.failed, found.judged, found.position) == (True, True, 4)


def test_a_failure_beyond_a_vacuous_gate_is_judged():
    assert WorstOwnError("x", TensorId(0, 0), "decode", 0, 9.0, Gate(8.0, 2.0), failed=True).judged


def test_only_the_broken_layer_has_an_own_error(model, inside):
    """The layers behind it are handed its error, and add none."""
    broken = copy.deepcopy(model)
    broken.model.layers[0].mlp.down_proj.weight.mul_(1.05)
    gates = own_gates(own_errors(layers(model), inside, nothing), "float32")
    found = findings(own_errors(layers(broken), inside, nothing), gates, "random")
    assert [str(item.part) for item in found if item.failed] == ["layer 0 output"]
