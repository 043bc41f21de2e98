"""The solve's conditioning and the shares of its error, against dense formulas and against known faults."""

import math

import numpy as np
import pytest
import torch

from lucid_deploy.parity.causes.solve_analysis import TOKENS, error_shares, head_stats, kernel, substitute
from lucid_deploy.parity.measure.growth import growth
from lucid_deploy.parity.measure.rounding import round_to
from lucid_deploy.plugins.precondition.reference import precondition_reference

EPS = 1e-5


def keys(tokens=70, width=16, correlation=0.9, heads=2, seed=0):
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(heads, 1, width))
    return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * rng.normal(size=(heads, tokens, width))


def dense(k):
    """L of one head, as on paper."""
    unit = k / np.sqrt(np.mean(k**2, axis=-1, keepdims=True) + EPS)
    width = k.shape[-1]
    return np.tril(np.exp(unit @ unit.T / math.sqrt(width) - math.sqrt(width)), -1) + np.eye(len(k))


@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("tokens", [1, 2, 63, 129])
def test_head_stats_are_those_of_the_dense_matrix(correlation, tokens):
    k = keys(tokens, correlation=correlation)
    for head, stats in enumerate(head_stats("some", 3, k, EPS)):
        lower = dense(k[head])
        inverse = np.linalg.inv(lower)
        off = inverse - np.diag(np.diag(inverse))
        assert (stats.scenario, stats.layer, stats.head, stats.tokens) == ("some", 3, head, tokens)
        assert stats.largest_inverse == pytest.approx(np.abs(off).max(), rel=1e-9, abs=1e-12)
        assert stats.inverse_norm == pytest.approx(np.linalg.norm(inverse, 2), rel=1e-9)
        assert stats.inverse_norm <= 2 + 1e-12
        assert stats.inverse_row_sum == pytest.approx(np.abs(inverse).sum(axis=1).max(), rel=1e-9)
        assert stats.condition == pytest.approx(np.linalg.cond(lower, 2), rel=1e-6)
        if tokens > 1:
            assert stats.correlation_max == pytest.approx(1.0, abs=0.35 if correlation else 1.5)


def test_repeated_keys_reach_the_bound_and_correlate_fully():
    k = np.repeat(keys(1), 200, axis=1)
    (stats, _) = head_stats("", 0, k, EPS)
    assert stats.correlation_max == pytest.approx(1, abs=1e-4) and stats.correlation_mean == pytest.approx(1, abs=1e-4)
    assert 1.99 < stats.inverse_norm <= 2
    assert stats.largest_inverse == pytest.approx(1, abs=1e-3)


def test_no_more_tokens_than_the_bound_are_looked_at():
    k = keys(TOKENS + 40, width=4, heads=1)
    (stats,) = head_stats("", 0, k, EPS)
    assert stats.tokens == TOKENS
    assert stats == head_stats("", 0, k[:, :TOKENS], EPS)[0]


@pytest.mark.parametrize("past", [0, 1, 40])
def test_substitution_is_the_operators_solve(past):
    k, v = keys(), np.random.default_rng(1).normal(size=(2, 70, 16))
    y = substitute(kernel(k, k, EPS), v)
    got = substitute(kernel(k[:, past:], k, EPS), v[:, past:], y[:, :past])
    tensors = (torch.from_numpy(x[None]) for x in (k[:, past:], v[:, past:], k[:, :past], y[:, :past]))
    wanted = precondition_reference(*tensors, None, EPS)[0].numpy()
    np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(got, y[:, past:], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_rounding_is_torchs(dtype):
    values = np.concatenate(
        [np.random.default_rng(0).normal(size=1000) * 10.0 ** np.arange(-4, 4).repeat(125), [0, -0.0]]
    )
    wanted = torch.from_numpy(values.astype(np.float32)).to(getattr(torch, dtype)).double().numpy()
    np.testing.assert_array_equal(round_to(values.astype(np.float32), dtype), wanted)
    assert np.isnan(round_to(np.array([np.nan]), dtype)).all()
    assert np.isposinf(round_to(np.array([np.inf]), dtype)).all()


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


def test_growth_finds_the_exponent():
    positions = np.arange(1, 301)
    trend = growth(1e-6 * positions**0.5)
    assert trend.exponent == pytest.approx(0.5)
    assert trend.ratio > 2 and trend.grows
    flat = growth(1e-6 * np.random.default_rng(0).uniform(0.5, 1.5, size=300))
    assert abs(flat.exponent) < 0.1 and not flat.grows


@pytest.mark.parametrize("errors", [np.ones(7), np.zeros(100), np.full(100, np.nan)])
def test_no_growth_without_enough_errors(errors):
    assert growth(errors) is None


def test_no_growth_over_a_short_stretch_far_away():
    assert growth(np.linspace(1, 2, 33), start=299) is None
