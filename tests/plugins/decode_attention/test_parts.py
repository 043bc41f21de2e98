"""Squares of keys from the products of keys with one another, where each warp has a part of a tile."""

import pytest
import torch

from tests.plugins.decode_attention.tile_runs import numbers_of_bfloat16, numbers_of_float16, run_own_squares


@pytest.mark.parametrize("parts", [1, 2, 4, 16])
@pytest.mark.parametrize("numbers", [numbers_of_bfloat16, numbers_of_float16])
def test_squares_are_exact_and_each_its_own_token_s(parts, numbers, interpret):
    """Products of two keys may be infinite or NaN where neither square is; those of bfloat16's largest numbers are."""
    wanted = numbers().double()[:, 0].square().float()
    found = interpret(run_own_squares, parts, numbers)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)
