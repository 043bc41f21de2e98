"""Sixteenths of the squares of keys in E4M3 are numbers of float16, which tensor cores add."""

import pytest
import torch

from tests.plugins.decode_attention.tile_runs import every_number, run_squares


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_square_is_rounded(dtype, add, interpret):
    wanted = every_number().double()[:, 0].square()
    assert wanted.max() == 448**2 > torch.finfo(torch.float16).max
    found = interpret(run_squares, dtype, add)
    assert torch.equal(found.double(), wanted.expand(found.shape))
