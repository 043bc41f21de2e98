"""Merging inverses against a triangular solve, on blocks of correlated keys, where the nilpotent product fails."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.plugins.block_inverse.reference import invert_unit_lower, merge_masks
from tests.plugins.block_inverse.blocks import blocks, exact_inverse
from tests.plugins.problems import relative


@pytest.mark.parametrize("correlation", [0.9, 1.0])
@pytest.mark.parametrize("size", [1, 2, 64])
def test_the_inverse_matches_a_triangular_solve(size: int, correlation: float) -> None:
    x = blocks(size, correlation)
    torch.testing.assert_close(invert_unit_lower(x), exact_inverse(x), rtol=1e-9, atol=1e-11)


def test_merging_is_stable_and_the_nilpotent_product_is_not() -> None:
    x = blocks(64, 0.99)
    exact, eye = exact_inverse(x), torch.eye(64)
    power, product = -x.float(), eye - x.float()
    for _ in range(5):
        power = power @ power
        product = product @ (eye + power)
    assert relative(invert_unit_lower(x.float()), exact) < 1e-5
    assert relative(product, exact) > 0.1, "the check above would pass with anything"


def test_every_pair_below_the_diagonal_is_merged_once() -> None:
    assert torch.equal(merge_masks(32).sum(0), torch.ones(32, 32, dtype=torch.int64).tril(-1))
