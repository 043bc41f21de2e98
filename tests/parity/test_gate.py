"""The gate: derived from the baseline, applied to every position, and neither vacuous nor too narrow."""

import numpy as np
import pytest
import torch

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.parity.gate import (
    UNIT,
    Gate,
    compare_rows,
    derive_gates,
    first_failure,
    widest,
)
from lucid_deploy.parity.record import TensorId, TensorRows, Trace

K0, Y0, K1, LOGITS = TensorId(0, 0), TensorId(0, 1), TensorId(1, 0), TensorId(2, 2)


def trace(values, tensor=K0):
    return Trace({tensor: TensorRows(np.array([values], dtype=np.float64))})


def comparison(tensor, errors, gate=1e-3, schedule="one-shot"):
    reference = np.ones((1, len(errors), 1))
    actual = reference + np.array(errors)[None, :, None]
    return compare_rows(TensorRows(actual), TensorRows(reference), tensor, Gate(gate, gate / 4), "random", schedule)


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
    reference = TensorRows(np.ones((1, 3, 2)), start=34)
    actual = TensorRows(reference.values + np.array([0, 0, 1])[None, :, None], start=34)
    failed = compare_rows(actual, reference, LOGITS, Gate(0.1, 0.025), "random", "one-shot")
    assert (failed.failed_at, failed.metrics.worst_position) == (36, 36)


def test_the_first_failure_is_the_one_nearest_to_the_cause():
    early, late = [1.0, 0, 0], [0, 0, 1.0]
    items = [
        comparison(LOGITS, early),
        comparison(K1, early),
        comparison(Y0, early),
        comparison(K0, late, schedule="chunks"),
        comparison(K0, late, schedule="by token"),
        comparison(K0, [0, 0, 0]),
    ]
    first = first_failure(items)
    assert (first.tensor, first.failed_at, first.schedule) == (K0, 2, "chunks")
    assert first_failure(items[:3]).tensor == Y0
    assert first_failure(items[:2]).tensor == K1
    assert first_failure([comparison(K0, early), comparison(K0, [0, 0, 0])]).failed_at == 0
    assert first_failure(items[-1:]) is None


def test_the_widest_gate_is_one_that_judges_if_any_does():
    narrow, wide, vacuous = Gate(1e-3, 2.5e-4), Gate(0.1, 0.025), Gate(1e8, 2.5e7)
    assert widest([{K0: narrow}, {K0: wide}, {K0: vacuous}]) == {K0: wide}
    assert widest([{K0: vacuous}]) == {K0: vacuous}


# What a gate can judge


def against(reference, gate, tensor=K0, actual=None):
    """Compare rows of one feature, zeros if nothing else is said."""
    wanted = np.array(reference, dtype=np.float64)[None, :, None]
    given = np.zeros_like(wanted) if actual is None else np.array(actual, dtype=np.float64)[None, :, None]
    return compare_rows(TensorRows(given), TensorRows(wanted), tensor, Gate(gate, gate / 4), "one token", "by token")


@pytest.mark.parametrize("gate", [1.0, 4.0, 1.5e8])
def test_a_gate_that_zeros_would_pass_judges_nothing(gate):
    found = against([1.0, -2.0, 3.0], gate)
    assert (found.outcome, found.judged, found.blind_positions) == ("not judged", False, 3)
    assert found.failed_at is None  # as wide as it is, it holds, which proves nothing


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e12])
def test_what_is_beyond_even_a_vacuous_gate_has_failed(value):
    found = against([1.0], 1.5e8, actual=[value])
    assert (found.outcome, found.judged) == ("failed", True)


def test_zeros_are_right_where_the_reference_is_zero():
    found = against([0.0, 0.0], 1e-6)
    assert (found.outcome, found.blind_positions) == ("passed", 0)
    assert against([0.0, 0.0], 1e-6, actual=[0.0, 1e-9]).outcome == "failed"


def test_rows_of_y_beside_which_earlier_ones_are_large_are_blind():
    """Their scale is the largest row so far; the gate is 0.01 of it."""
    found = against([10.0, 5.0, 0.05, 0.2], 1e-2, tensor=Y0, actual=[10.0, 5.0, 0.0, 0.2])
    assert (found.outcome, found.blind_positions) == ("passed", 1)
    assert against([10.0, 5.0, 0.05, 0.2], 1e-2, tensor=Y0, actual=[10.0, 5.0, 0.05, 0.0]).outcome == "failed"
    assert against([10.0, 5.0, 0.05, 0.2], 1e-2, tensor=K0, actual=[10.0, 5.0, 0.05, 0.2]).blind_positions == 0


@pytest.mark.parametrize("accumulated", [K0, Y0])
@pytest.mark.parametrize("gate", [1e-3, 0.3, 0.9999, 1.0, 2.0])
def test_a_comparison_is_judged_exactly_if_zeros_would_fail_it(accumulated, gate):
    rng = np.random.default_rng(0)
    for _ in range(50):
        reference = rng.normal(size=6) * 10.0 ** rng.integers(-4, 4, size=6)
        right = against(reference, gate, accumulated, actual=reference)
        zeros = against(reference, gate, accumulated)
        assert right.judged == (zeros.outcome == "failed")
