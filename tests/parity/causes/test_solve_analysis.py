"""The shares of an error in Y, against dense formulas and against known faults."""

import numpy as np
import pytest
import torch

from lucid_deploy.parity.causes.solve_analysis import error_shares, kernel, substitute
from lucid_deploy.parity.metrics import round_to
from lucid_deploy.plugins.precondition.reference import precondition_reference
from tests.parity.correlated_keys import EPS, keys


@pytest.mark.parametrize("past", [0, 1, 40])
def test_substitution_is_the_operators_solve(past):
    k, v = keys(), np.random.default_rng(1).normal(size=(2, 70, 16))
    y = substitute(kernel(k, k, EPS), v)
    got = substitute(kernel(k[:, past:], k, EPS), v[:, past:], y[:, :past])
    tensors = (torch.from_numpy(x[None]) for x in (k[:, past:], v[:, past:], k[:, :past], y[:, :past]))
    wanted = precondition_reference(*tensors, None, EPS)[0].numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(got, y[:, past:], rtol=1e-9, atol=1e-10)


def shares(k, v, candidate, dtype="float32", stored_each_row=False):
    y = substitute(kernel(k, k, EPS), v)
    return error_shares(0, "", (k, v, y), candidate, EPS, lambda rows: round_to(rows, dtype), stored_each_row)


@pytest.fixture
def example():
    return keys(correlation=0.99), np.random.default_rng(1).normal(size=(2, 70, 16))


def test_an_error_of_the_inputs_is_theirs(example):
    k, v = example
    k_bad = k * (1 + 1e-3 * np.random.default_rng(2).normal(size=k.shape))
    y_bad = substitute(kernel(k_bad, k_bad, EPS), v)
    found = shares(k, v, (k_bad, v, y_bad))
    assert found.total == pytest.approx(found.inputs) == pytest.approx(found.keys)
    assert found.values == 0
    assert found.inputs_share == pytest.approx(1)
    v_bad = v * 1.01
    found = shares(k, v, (k, v_bad, substitute(kernel(k, k, EPS), v_bad)))
    assert found.values == pytest.approx(found.total) == pytest.approx(0.01)
    assert found.keys == 0


def test_single_precision_scores_are_explained_as_e(example):
    k, v = (x.astype(np.float32).astype(np.float64) for x in example)
    k32 = k.astype(np.float32)
    y = substitute(kernel(k32, k32, np.float32(EPS)).astype(np.float64), v)
    found = shares(k, v, (k, v, y))
    assert found.inputs == 0 and found.inputs_share == 0
    assert found.e_share > 0.9
    assert 0.2 < found.excess < 4


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_stored_y_is_explained_as_y(example, dtype):
    k, v = example
    e = kernel(k, k, EPS)
    y = substitute(e, v, rounding=lambda row: round_to(row, dtype))
    found = shares(k, v, (k, v, y), dtype, stored_each_row=True)
    assert found.y_share == pytest.approx(1, abs=1e-3)
    assert found.excess == pytest.approx(1, abs=0.05)
    once = shares(k, v, (k, v, round_to(substitute(e, v), dtype)), dtype)
    assert once.total < found.total  # rounding at the end costs less than feeding it back
    assert once.excess == pytest.approx(1, abs=0.05)


def test_what_rounding_does_not_explain_is_said_to_be_unexplained(example):
    k, v = example
    y = substitute(round_to(kernel(k, k, EPS), "bfloat16"), v)
    found = shares(k, v, (k, v, y))
    assert found.excess > 100
    assert found.unexplained_share > 0.99
    total = found.inputs_share + found.e_share + found.y_share + found.unexplained_share
    assert total == pytest.approx(1)


def test_an_exact_candidate_has_no_shares(example):
    k, v = example
    found = shares(k, v, (k, v, substitute(kernel(k, k, EPS), v)))
    assert (found.total, found.inputs_share, found.e_share, found.y_share, found.excess) == (0, 0, 0, 0, 0)
