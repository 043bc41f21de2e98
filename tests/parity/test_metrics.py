"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest

from lucid_deploy.parity.metrics import (
    kl_divergence,
    logit_metrics,
    position_errors,
    tensor_metrics,
)


def rows(*values):
    """One batch row."""
    return np.array([values], dtype=np.float32)


def test_position_errors_are_relative_to_each_position():
    reference, actual = rows([3, 4], [6, 8]), rows([3, 4.5], [6, 9])
    np.testing.assert_allclose(position_errors(actual, reference), [0.5 / 5, 1 / 10])


def test_the_worst_batch_row_counts():
    reference = rows([3, 4])
    actual = np.concatenate([rows([3, 4]), rows([3, 5])])
    np.testing.assert_allclose(position_errors(actual, reference), [0.2])


def test_accumulated_rows_are_measured_by_the_largest_so_far():
    reference, actual = rows([1, 0], [3, 4], [0.001, 0]), rows([1.1, 0], [3, 4], [0.002, 0])
    errors = position_errors(actual, reference, accumulated=True)
    np.testing.assert_allclose(errors, [0.1, 0, 0.001 / 5], rtol=1e-6)
    assert position_errors(actual, reference)[2] == pytest.approx(1.0)
    ahead = position_errors(rows([2, 0], [100, 0]), rows([1, 0], [100, 0]), accumulated=True)
    np.testing.assert_allclose(ahead, [1, 0])  # later rows do not count


def test_a_zero_reference_is_matched_by_zero_only():
    reference, actual = rows([0, 0], [0, 0]), rows([0, 0], [0, 1e-20])
    np.testing.assert_array_equal(position_errors(actual, reference), [0, np.inf])


def test_tensor_metrics_by_hand():
    reference, actual = rows([3, 4], [0, 12]), rows([3, 4], [5, 12])
    metrics, errors = tensor_metrics(actual, reference)
    np.testing.assert_array_equal(errors, position_errors(actual, reference))
    assert metrics.max_abs == 5
    assert metrics.relative_l2 == pytest.approx(5 / 13)
    assert (metrics.worst_position_error, metrics.worst_position) == (pytest.approx(5 / 12), 1)
    ones = np.array([[[1.0, 1.0]]])  # errors below float32 are seen
    assert tensor_metrics(ones + 1e-12, ones)[0].relative_l2 == pytest.approx(1e-12, rel=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_the_worst_position(value):
    reference, actual = rows([1, 1], [1, 1], [1, 1]), rows([9, 9], [1, value], [1, 1])
    metrics, _ = tensor_metrics(actual, reference)
    assert metrics.worst_position == 1
    assert not metrics.worst_position_error < 1e9 and not metrics.max_abs < 1e9


def test_kl_divergence():
    reference, actual = np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    np.testing.assert_allclose(kl_divergence(actual, reference), [expected])
    large = np.array([[1000.0, 998.0, -1000.0]])  # a common shift changes nothing, and nothing overflows
    np.testing.assert_allclose(kl_divergence(large + 700, large), [0], atol=1e-15)


def test_an_error_within_the_gate_never_counts_as_disagreement():
    """The bound √2·gate·‖reference‖ is reached by moving both logits towards each other, and by nothing else."""
    rng, gate = np.random.default_rng(0), 1e-2
    for _ in range(200):
        reference = rng.normal(size=(1, 1, 30))
        error = rng.normal(size=reference.shape)
        if rng.random() < 0.5:  # the worst direction
            first, second = np.argsort(-reference[0, 0])[:2]
            error[:] = 0
            error[..., first], error[..., second] = -1, 1
        error *= gate * np.linalg.norm(reference) / np.linalg.norm(error) * 0.999
        assert logit_metrics(reference + error, reference, gate).disagreed == 0


def test_near_ties_and_disagreement_are_counted():
    reference = np.array([[[2.0, 1.0, 0.0], [1.0, 1.001, 0.0], [0.0, 0.0, 5.0]]])
    actual = np.array([[[1.0, 2.0, 0.0], [1.002, 1.001, 0.0], [0.0, 0.0, 5.0]]])
    found = logit_metrics(actual, reference, gate=0.01)
    assert (found.positions, found.agreed, found.near_ties, found.disagreed) == (3, 1, 1, 1)
    assert logit_metrics(actual, reference, gate=0.32).near_ties == 2 and math.sqrt(2) * 0.32 * math.sqrt(5) > 1
    assert logit_metrics(actual, reference, gate=0.31).near_ties == 1 and math.sqrt(2) * 0.31 * math.sqrt(5) < 1
