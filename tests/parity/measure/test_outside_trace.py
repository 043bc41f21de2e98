"""Numbers of others: which rows are compared, and what is allowed for rounding in them."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.parity.measure.compare import TensorId, TensorRows, Trace
from lucid_deploy.parity.measure.gate import FACTOR, UNIT, Gate
from lucid_deploy.parity.measure.measurement import Reference
from lucid_deploy.parity.measure.outside_trace import OutsideTrace, own_errors, rounding_of, shared, wider

K, LOGITS = TensorId(0, 0), TensorId(1, 2)
REFERENCE = Reference("golden file", "the golden file g", independent=True)


def rows(start: int, stop: int) -> TensorRows:
    return TensorRows(np.arange(start + 1, stop + 1, dtype=np.float64)[None, :, None], start)


def test_only_positions_that_both_have_are_compared():
    one, other = shared(rows(3, 10), rows(0, 8))
    assert one.start == other.start == 3
    assert one.values.ravel().tolist() == other.values.ravel().tolist() == [4, 5, 6, 7, 8]
    assert shared(rows(6, 10), rows(0, 4))[0].values.shape[1] == 0


def test_a_comparison_names_its_reference_and_has_its_own_gate():
    outside = OutsideTrace(REFERENCE, Trace({LOGITS: rows(0, 8)}), {LOGITS: 0.5e-3})
    found = Trace({K: rows(0, 8), LOGITS: TensorRows(rows(4, 8).values * (1 + 1e-3), 4)})
    (item,) = outside.compare(found, {LOGITS: Gate(1e-3, 0.25e-3)}, "golden 1", "chunks")
    assert (item.against, item.where) == ("golden file", "golden 1, chunks, against golden file")
    assert item.gate.limit == pytest.approx(1.5e-3) and item.failed_at is None and item.start == 4
    (tight,) = outside.compare(found, {LOGITS: Gate(1e-4, 0.25e-4)}, "golden 1", "chunks")
    assert tight.failed_at == 4


def test_a_tensor_without_shared_positions_is_not_compared():
    outside = OutsideTrace(REFERENCE, Trace({K: rows(0, 2)}), {K: 0.0})
    assert outside.compare(Trace({K: rows(5, 8)}), {K: Gate(1.0, 0.1)}, "golden 1", "one-shot") == []


def test_a_gate_that_was_set_by_hand_stays():
    gate = wider(Gate(1e-3, 1e-6, derived=4e-6), 1e-6)
    assert (gate.limit, gate.derived) == (1e-3, pytest.approx(5e-6))


def test_rounding_of_a_type_as_fine_as_the_candidates_is_in_proportion():
    gates = {K: Gate(4e-6, 1e-6)}
    same = rounding_of(gates, "float32", "float32", {K: "float32"}, None)
    assert same[K] == pytest.approx(FACTOR * 1e-6 + UNIT["float32"])
    finer = rounding_of(gates, "float32", "float64", {K: "float64"}, None)
    assert finer[K] == pytest.approx(FACTOR * 1e-6 * 2.0**-29 + UNIT["float64"])


def test_rounding_of_a_coarser_type_is_what_our_own_model_loses_in_it():
    gates = {K: Gate(4e-6, 1e-6), LOGITS: Gate(4e-6, 1e-6)}
    found = rounding_of(gates, "float32", "bfloat16", {K: "bfloat16"}, {K: 3e-3, LOGITS: 1.0})
    assert found == {K: FACTOR * 3e-3 + UNIT["bfloat16"]}


def test_own_errors_are_the_worst_positions():
    exact, near = rows(0, 4), TensorRows(rows(0, 4).values * np.array([1, 1.01, 1, 1.02])[None, :, None])
    assert own_errors(Trace({K: near}), Trace({K: exact}), "bfloat16") == {K: pytest.approx(0.02)}
    lost = Trace({K: TensorRows(np.full((1, 4, 1), np.nan))})
    with pytest.raises(LucidError, match="gives NaN or infinity in float16"):
        own_errors(lost, Trace({K: exact}), "float16")
