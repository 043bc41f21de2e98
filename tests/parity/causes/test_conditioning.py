"""The conditioning of a solve, against dense formulas."""

import math

import numpy as np
import pytest

from lucid_deploy.model.description import describe
from lucid_deploy.parity.causes.conditioning import conditioning, head_stats
from lucid_deploy.parity.causes.solve_analysis import TOKENS
from tests.parity.correlated_keys import EPS, keys
from tests.parity.small_models import LAYERS


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


def test_every_layer_of_the_scenarios_worth_a_look_is_measured(model, targets):
    seen = []
    found = list(
        conditioning(targets, model.config, describe(model.config, "float32"), lambda *step: seen.append(step))
    )
    heads = model.config.num_key_value_heads
    assert [(s.scenario, s.layer, s.head) for s in found] == [
        (name, layer, head) for name in ("correlated", "greedy") for layer in range(LAYERS) for head in range(heads)
    ]
    assert [step[1:] for step in seen] == [(done, 2 * LAYERS) for done in range(2 * LAYERS + 1)]
