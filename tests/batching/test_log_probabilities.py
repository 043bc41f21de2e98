"""Log-probabilities are those of a softmax in float64, and the most likely tokens come in a stable order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.batching.log_probabilities import largest, log_probabilities


@pytest.mark.parametrize("size", [1, 2, 97, 4001])
def test_the_largest_are_those_of_a_stable_sort(size: int) -> None:
    """Few values, so that many are equal; one that a constraint has taken out."""
    rng = np.random.default_rng(size)
    values = rng.integers(0, 9, size).astype(np.float64)
    values[rng.integers(size)] = -np.inf
    for count in (0, 1, 2, 20, size - 1, size, size + 3):
        wanted = np.argsort(-values, kind="stable")[: max(count, 0)]
        np.testing.assert_array_equal(largest(values, max(count, 0)), wanted)


def test_they_are_pytorchs() -> None:
    logits = (20 * np.random.default_rng(0).standard_normal(4001)).astype(np.float32)
    wanted = torch.log_softmax(torch.from_numpy(logits).double(), 0)
    found, top = log_probabilities(logits, 17, 20)
    assert found == pytest.approx(wanted[17].item(), rel=1e-12)
    best = wanted.topk(20)
    assert [token for token, _ in top] == best.indices.tolist()
    np.testing.assert_allclose([value for _, value in top], best.values.numpy(), rtol=1e-12)


def test_nothing_is_computed_that_is_not_wanted() -> None:
    assert log_probabilities(np.zeros(3, np.float32), 0, None) == (None, ())
    assert log_probabilities(np.zeros(4, np.float32), 2, 0) == (pytest.approx(-np.log(4)), ())
