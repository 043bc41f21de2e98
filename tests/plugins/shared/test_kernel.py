"""The Triton device functions that kernels share, in the interpreter, alone."""

from __future__ import annotations

import pytest
import torch

from tests.plugins.shared.kernel_runs import (
    BLOCK,
    ROWS,
    WIDTH,
    run_columns,
    run_float16_parts,
    run_norms,
    run_parts,
    run_parts_of_no_numbers,
    run_powers,
    run_product,
)
from tests.plugins.tensor_cores import nearest

DTYPES = ["float32", "float16", "bfloat16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
def test_rows_tokens_and_norms_are_zero_beyond_what_is_there(dtype, epsilon, interpret):
    """NaN lies behind the rows, and with ε = 0 the norm of nothing would be infinite."""
    result = interpret(run_norms, dtype, epsilon)
    assert result["rows"] and result["beyond"]
    assert result["tokens"] == [int(row < ROWS and row not in (2, 5)) for row in range(BLOCK)]
    assert result["error"] < 1e-6  # a few units in the last place of float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_as_exact_as_their_type_allows(dtype, interpret):
    result = interpret(run_product, dtype)
    if dtype == "bfloat16":  # two parts hold 16 bits where one holds 8
        assert result["error"] < result["one part"] / 50
    elif dtype == "float16":
        assert result["error"] <= 1.5 * result["one part"]
    else:
        assert result["error"] <= 4 * result["float32"]


@pytest.mark.parametrize(("first", "count"), [(0, 16), (8, 8), (16, 16), (WIDTH, 8)])
def test_columns_are_zero_beyond_what_is_there(first, count, interpret):
    assert interpret(run_columns, first, count)


def test_two_tf32_parts_lose_two_bits_of_float32_at_most(interpret):
    """Cut: 24 bits are 11 and 13, of which a factor keeps 11. Nearest: the second part has 12 bits and a sign.

    Split: it has 13 where 2¹³ + 1 times a number has another exponent than 2¹³ times it.
    """
    result = interpret(run_parts)
    x = result["x"]
    for name, lost in (("cut", 2.0**-21), ("nearest", 2.0**-23), ("rounded", 2.0**-22), ("split", 2.0**-22)):
        high, _, high_factor, low_factor = result[name]
        assert torch.equal(high_factor, high), "the high part is a tf32 number"
        assert bool(((high + low_factor - x).abs() <= lost * x.abs()).all())
    for name in ("cut", "nearest", "split"):
        assert torch.equal(result[name][:2].sum(0), x), "nothing is lost before the product"
    assert torch.equal(result["rounded"][3], result["rounded"][1])


def test_rounded_parts_leave_a_rest_of_either_sign(interpret):
    """So that the products of two rests, which are left out, cancel in a sum; rests of what is cut have its sign."""
    result = interpret(run_parts)
    shares = {
        name: result[name][1] / result["x"].where(result["x"] != 0, 1.0)
        for name in ("cut", "nearest", "rounded", "split")
    }
    assert shares["cut"].mean() > 2.0**-13 and bool((shares["cut"] >= 0).all())
    assert max(shares[name].mean().abs() for name in ("nearest", "rounded", "split")) < 2.0**-11 / 16


def test_the_nearest_number_is_that_of_the_conversion_in_tf32x3(interpret):
    """PTX's cvt.rna.tf32.f32; so three products of these parts are those of Triton's tf32x3."""
    result = interpret(run_parts)
    assert torch.equal(result["nearest"][0], nearest(result["x"].float()).double())


def test_what_is_no_number_stays_none_in_the_rest(interpret):
    assert bool(interpret(run_parts_of_no_numbers).isnan().all())


def test_two_float16_parts_lose_what_their_docstring_says(interpret):
    found = interpret(run_float16_parts)
    size, lost = found["x"].abs(), (found["high"] + found["low"] - found["x"]).abs()
    large = size >= 2.0**-2
    assert bool((lost[large] <= 2.0**-23 * size[large]).all()) and bool((lost[~large] <= 2.0**-25).all())
    assert lost[large].max() > 0 and lost[~large].max() > 2.0**-27, "the bounds are near what happens"
    assert bool((found["low"].abs() <= 2.0**-11 * size + 2.0**-25).all())


def test_the_largest_number_of_a_row_is_2_to_the_14_at_least(interpret):
    result = interpret(run_powers)
    largest, powers = result["largest"][:-4], result["powers"]
    assert bool((powers.log2() == powers.log2().round()).all()), "multiplying is exact"
    assert bool((powers * result["inverses"] == 1).all()), "and so is dividing"
    assert bool(((largest * powers[:-4] >= 2.0**14) & (largest * powers[:-4] < 2.0**15)).all())
    assert powers[-4:-2].tolist() == [2.0**104] * 2 and bool((powers[-2:] > 0).all())
