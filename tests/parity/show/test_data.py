"""Comparisons as plain data."""

import json

import numpy as np
import pytest

from lucid_deploy.parity.measure.compare import TensorId, TensorRows
from lucid_deploy.parity.measure.gate import Gate, compare_rows
from lucid_deploy.parity.show.data import comparison_dict, curve_dict, divergence_class, divergence_dict

LOGITS = TensorId(2, 2)


def logits(gate, chosen=(1.0, 2.0, 0.0)):
    reference, actual = np.array([[[2.0, 1.0, 0.0]]]), np.array([[chosen]])
    return compare_rows(
        TensorRows(actual, 7), TensorRows(reference, 7), LOGITS, Gate(gate, gate / 4), "random", "chunks"
    )


@pytest.mark.parametrize(
    ("gate", "passed", "outcome"), [(0.1, False, "failed"), (0.9, True, "passed"), (1.5, None, "not judged")]
)
def test_what_was_not_judged_has_not_passed(gate, passed, outcome):
    data = comparison_dict(logits(gate))
    assert (data["passed"], data["outcome"], data["judged"]) == (passed, outcome, passed is not None)
    json.dumps(data, allow_nan=False)


def test_numbers_that_are_not_finite_are_null():
    data = comparison_dict(logits(0.1, (float("nan"), 0.0, 0.0)))
    assert (data["error"], data["passed"], data["failed_at"]) == (None, False, 7)
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(("gate", "name"), [(0.1, "real"), (0.9, "near-tie"), (1.5, "not judged")])
def test_another_token_is_no_near_tie_where_any_token_would_pass(gate, name):
    comparison = logits(gate)
    (item,) = comparison.logits.divergences
    assert divergence_class(comparison, item) == name
    data = divergence_dict(comparison, item)
    assert (data["class"], data["position"], data["wanted"], data["chosen"]) == (name, 7, 0, 1)


def test_a_curve_begins_where_its_rows_do():
    assert curve_dict(logits(0.1)) == {
        "tensor": "logits",
        "scenario": "random",
        "schedule": "chunks",
        "start": 7,
        "errors": [pytest.approx((2 / 5) ** 0.5)],
    }
