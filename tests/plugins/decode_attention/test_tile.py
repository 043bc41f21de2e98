"""Squares of keys that tensor cores add: in E4M3 as numbers of float16, a sixteenth each, in bfloat16 as two parts."""

import pytest
import torch

from tests.plugins.decode_attention.tile_runs import (
    every_number,
    numbers_of_bfloat16,
    numbers_of_float16,
    run_squares,
)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_square_is_rounded(dtype, add, interpret):
    wanted = every_number().double()[:, 0].square()
    assert wanted.max() == 448**2 > torch.finfo(torch.float16).max
    found = interpret(run_squares, dtype, add)
    assert torch.equal(found.double(), wanted.expand(found.shape))


@pytest.mark.parametrize("add", [False, True])
def test_squares_of_bfloat16_are_exact_and_of_the_largest_infinite(add, interpret):
    wanted = numbers_of_bfloat16().double()[:, 0].square().float()
    assert wanted[-4:-1].isinf().all() and wanted[-1].isnan() and wanted[:-4].max() > 1e37
    found = interpret(run_squares, "bfloat16", add, numbers_of_bfloat16)
    torch.testing.assert_close(found, wanted.expand(found.shape), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("add", [False, True])
def test_squares_of_float16_keep_16_bits_at_least(add, interpret):
    wanted = numbers_of_float16().double()[:, 0].square().float()
    assert wanted[wanted > 0].min() == 2.0**-48 and wanted.max() > 4e9, "beyond float16 itself"
    found = interpret(run_squares, "float16", add, numbers_of_float16)
    torch.testing.assert_close(found, wanted.expand(found.shape), rtol=2.0**-16 if add else 0, atol=0)
