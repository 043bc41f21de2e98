"""The gate: derived from the baseline, applied to every position, and neither vacuous nor too narrow."""

import numpy as np
import pytest
import torch

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.model.scenarios import ONE_SHOT, SCHEDULES, synthetic_scenarios
from lucid_deploy.parity import check, prepare, verify
from lucid_deploy.parity.measure.compare import Rows, TensorId, Trace, record
from lucid_deploy.parity.measure.gate import (
    FLOOR_UNITS,
    UNIT,
    Gate,
    compare_rows,
    derive_gates,
    first_failure,
    unproven,
)
from lucid_deploy.parity.measure.metrics import position_errors
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import LAYERS, session, small_model

K0, Y0, K1, LOGITS = TensorId(0, 0), TensorId(0, 1), TensorId(1, 0), TensorId(2, 2)


def trace(values, tensor=K0):
    return Trace({tensor: Rows(np.array([values], dtype=np.float64))})


def comparison(tensor, errors, gate=1e-3, schedule="one-shot"):
    reference = np.ones((1, len(errors), 1))
    actual = reference + np.array(errors)[None, :, None]
    return compare_rows(Rows(actual), Rows(reference), tensor, Gate(gate, gate / 4), "random", schedule)


def test_the_gate_is_four_times_the_baselines_worst_position():
    gate = derive_gates(trace([[1.0], [2.0]]), trace([[1.001], [2.0]]), "float32")[K0]
    assert gate.limit == pytest.approx(4e-3)
    assert gate.baseline == pytest.approx(1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_exact_baseline_leaves_two_units_in_the_last_place(dtype):
    one = torch.ones((), dtype=getattr(torch, dtype))
    unit = float(torch.nextafter(one, 2 * one) - one)
    assert UNIT[dtype] == unit
    assert derive_gates(trace([[1.0]]), trace([[1.0]]), dtype)[K0].limit == 2 * unit


def test_a_baseline_that_overflows_is_not_a_gate():
    with pytest.raises(CheckFailed, match=r"float16.*layer 0 K.*bfloat16 or float32"):
        derive_gates(trace([[1.0]]), trace([[np.inf]]), "float16")
    with pytest.raises(LucidError, match="float64"):
        derive_gates(trace([[np.nan]]), trace([[1.0]]), "float16")


def test_errors_at_the_gate_pass_and_beyond_it_fail():
    assert comparison(K0, [0, 0.9e-3, 0]).failed_at is None
    failed = comparison(K0, [0, 1.1e-3, 5e-3])
    assert failed.failed_at == 1
    assert failed.error == pytest.approx(1.1e-3)
    assert failed.metrics.worst_position == 2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_fails_any_gate(value):
    failed = comparison(K0, [0, value], gate=1e30)
    assert failed.failed_at == 1
    assert failed.severity == np.inf


def test_positions_count_in_the_sequence():
    reference = Rows(np.ones((1, 3, 2)), start=34)
    actual = Rows(reference.values + np.array([0, 0, 1])[None, :, None], start=34)
    failed = compare_rows(actual, reference, LOGITS, Gate(0.1, 0.025), "random", "one-shot")
    assert (failed.failed_at, failed.metrics.worst_position) == (36, 36)


def test_the_first_failure_is_the_one_nearest_to_the_cause():
    early, late = [1.0, 0, 0], [0, 0, 1.0]
    items = [
        comparison(LOGITS, early),
        comparison(K1, early),
        comparison(Y0, early),
        comparison(K0, late, schedule="by 7"),
        comparison(K0, late, schedule="by token"),
        comparison(K0, [0, 0, 0]),
    ]
    first = first_failure(items)
    assert (first.tensor, first.failed_at, first.schedule) == (K0, 2, "by 7")
    assert first_failure(items[:3]).tensor == Y0
    assert first_failure(items[:2]).tensor == K1
    assert first_failure([comparison(K0, early), comparison(K0, [0, 0, 0])]).failed_at == 0
    assert first_failure(items[-1:]) is None


def test_a_tensor_that_every_gate_lets_through_is_unproven():
    wide, narrow = Gate(1.0, 0.25), Gate(0.5, 0.125)
    assert unproven([{K0: wide, Y0: wide}, {K0: wide, Y0: narrow}]) == [K0]


def test_a_scenario_of_few_tokens_takes_the_widest_gate(model):
    """Its own gates may be narrow by luck: 3 tokens and one that repeats are a handful of rounding errors."""
    sources = session(model), session(model, torch.float64)
    targets = prepare(*sources, steps=8, prompt=np.array([1, 2, 3]))
    *others, short = targets.items
    assert short.scenario.name == "prompt"
    for tensor, gate in short.gates.items():
        assert gate.limit >= max(target.gates[tensor].limit for target in others)
    assert len({target.gates[Y0] for target in others}) == len(others)  # the others keep their own


# Faithful candidates

VARIANTS = {
    "lucid": {},
    "no rope": {"use_rope": False},
    "llama": {"attention_type": "llama"},
    "head_dim 68": {"head_dim": 68, "num_key_value_heads": 1, "correlation": 0.995},
    "tied, one head each": {"tie_word_embeddings": True, "num_key_value_heads": 4},
}


CASES = [(name, torch.float32) for name in VARIANTS] + [
    (name, dtype) for name in ("lucid", "no rope") for dtype in (torch.float16, torch.bfloat16)
]


@pytest.mark.parametrize(("variant", "dtype"), CASES)
def test_a_faithful_candidate_passes(variant, dtype):
    """Dense formulas instead of blocked ones: another order of rounding in every operator."""
    changes = VARIANTS[variant]
    model = small_model(max_position_embeddings=48, **changes)
    dense = small_model(max_position_embeddings=48, implementation="reference", **changes)
    candidate = session(dense, dtype)
    report = verify(candidate, session(model, dtype), session(model, torch.float64), steps=8)
    assert report.passed, report.verdict()
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert all(item.logits.disagreed == 0 for item in report.comparisons if item.logits)
    # 5 scenarios in 5 schedules, K and Y of each layer and the logits, and one free run.
    assert len(report.comparisons) == 5 * 5 * (2 * LAYERS + 1) + 1


def test_a_faithful_candidate_passes_across_blocks():
    """300 tokens: more than two blocks of 128, ending inside one."""
    model = small_model()
    report = verify(session(model), session(model), session(model, torch.float64), steps=2)
    assert report.scenarios[0].prompt_tokens == 300
    assert report.passed, report.verdict()


@pytest.mark.parametrize("use_rope", [True, False])
def test_in_float64_every_schedule_is_the_same_function(use_rope):
    """What lets one reference serve all schedules. 1e-13 is some hundred roundings of float64 (1.1e-16 each)."""
    model = small_model(max_position_embeddings=180, use_rope=use_rope)
    reference = session(model, torch.float64)
    for scenario in synthetic_scenarios(model.config, steps=4):
        one_shot = record(reference, scenario)
        for schedule in SCHEDULES:
            other = record(reference, scenario, schedule)
            for tensor, rows in one_shot.tensors.items():
                errors = position_errors(other.tensors[tensor].values, rows.values, tensor.accumulated)
                assert errors.max() < 1e-13, (scenario.name, schedule.name, str(tensor))


# Not vacuous


def test_the_gates_are_narrow(targets):
    """In float32 at most 1e-4 anywhere: a fault that shows in the fourth digit cannot pass."""
    limits = [gate.limit for target in targets.items for gate in target.gates.values()]
    assert FLOOR_UNITS * UNIT["float32"] <= min(limits)
    assert max(limits) < 1e-4


class Nudged(TorchSession):
    """One row of one layer's Y is off by a share of its gate."""

    def __init__(self, model, targets, share):
        super().__init__(model)
        self.size = share * min(target.gates[TensorId(1, 1)].limit for target in targets.items)

    def layer_arrays(self, cache):
        arrays = super().layer_arrays(cache)
        y = arrays[1][1].astype(np.float64)  # so that the nudge is not rounded away
        norms = np.linalg.norm(y, axis=(1, 3), keepdims=True)  # (B, 1, T, 1)
        scale = np.maximum.accumulate(np.nan_to_num(norms), axis=2)[:, :, 20]
        y[:, 0, 20, 0] += self.size * scale[:, 0, 0]
        arrays[1] = (arrays[1][0], y)
        return arrays


def test_the_gate_is_where_it_says(model, targets):
    """A nudge of half the narrowest gate passes, one of twice the narrowest gate does not, in that scenario."""
    assert check(Nudged(model, targets, 0.5), targets, schedules=[ONE_SHOT]).passed
    report = check(Nudged(model, targets, 2.0), targets, schedules=[ONE_SHOT])
    assert (str(report.failure.tensor), report.failure.failed_at) == ("layer 1 Y", 20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gates_still_see_a_weight_off_by_ten_percent(model, dtype):
    targets = prepare(session(model, dtype), session(model, torch.float64), steps=8)
    assert check(session(model, dtype), targets, schedules=[ONE_SHOT]).passed
    broken = session(model, dtype)
    broken._model.model.layers[1].self_attn.v_proj.weight.mul_(1.1)
    report = check(broken, targets, schedules=[ONE_SHOT])
    assert str(report.failure.tensor) == "layer 1 Y"


# Wrong use


def test_precisions_must_fit(model, targets):
    with pytest.raises(ValueError, match="float64"):
        verify(session(model), session(model), session(model), steps=2)
    with pytest.raises(ValueError, match="bfloat16"):
        check(session(model, torch.bfloat16), targets)


class WrongShape(TorchSession):
    def layer_arrays(self, cache):
        return [(k[:, :, 1:], y) for k, y in super().layer_arrays(cache)]


class MissingLayer(TorchSession):
    def layer_arrays(self, cache):
        return super().layer_arrays(cache)[:-1]


@pytest.mark.parametrize(("kind", "message"), [(WrongShape, "layer 0 K has shape"), (MissingLayer, "2 layers")])
def test_tensors_of_wrong_shape_fail_with_a_message(model, targets, kind, message):
    with pytest.raises(CheckFailed, match=message):
        check(kind(model), targets)
