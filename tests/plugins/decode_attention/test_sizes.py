"""Decoding with keys and queries of any size whose products are of parts or of float16: float32, E4M3."""

from __future__ import annotations

import math

import pytest
import torch

from tests.plugins.decode_attention.size_runs import (
    run_beyond_squares,
    run_float8,
    run_huge,
    run_mixed,
    run_no_number,
    run_one_size,
)
from tests.plugins.kernel_cases import EPS, relative_error, within_gate

# Keys in parts of float16, and of tf32: with up to eight rows of heads as wide as their tile, and with sixteen.
ARCHS = pytest.mark.parametrize(("arch", "width"), [(80, 64), (100, 64), (100, 60)])


def assert_exact(result):
    for error, plain in zip(result["errors"], result["plain"], strict=True):
        assert within_gate(error, plain, "float32"), result


@ARCHS
@pytest.mark.parametrize(
    ("exponent", "keys"),
    [*((exponent, 0.99) for exponent in (-83, -60, -10, 0, 30, 60, 83)), (-83, "repeated"), (0, "repeated")],
)
def test_keys_of_one_size(exponent, keys, arch, width, interpret):
    """Squares of 2⁸³ (1e25) are beyond float32, where its inverse norms are 0; those of 2⁻⁸³ are 0, where ε is all."""
    assert_exact(interpret(run_one_size, 2.0**exponent, width, keys, EPS, arch))


@pytest.mark.parametrize("arch", [80, 100])
@pytest.mark.parametrize("exponent", [-53, 0, 53])
def test_keys_of_one_size_whose_norms_have_no_epsilon(exponent, arch, interpret):
    assert_exact(interpret(run_one_size, 2.0**exponent, 36, 0.99, 0.0, arch))


@ARCHS
@pytest.mark.parametrize("eps", [0.0, EPS])
@pytest.mark.parametrize("keys", [0.9, "repeated"])
def test_keys_of_all_sizes_in_one_tile(keys, eps, arch, width, interpret):
    assert_exact(interpret(run_mixed, width, keys, eps, arch))


@ARCHS
@pytest.mark.parametrize("size", [100.0, 1e4, 1e6])
def test_single_huge_numbers_take_no_digits_of_the_others(size, arch, width, interpret):
    assert_exact(interpret(run_huge, size, width, EPS, arch))


@ARCHS
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_seen(number, arch, width, interpret):
    """A query makes its own output NaN and no other, a key all of its head."""
    of_query = interpret(run_no_number, "q", number, width, arch)
    assert of_query["o"].isnan().all(3)[0].flatten().tolist() == [row == 1 for row in range(20)]
    assert of_query["y_new"].isfinite().all()
    of_key = interpret(run_no_number, "k", number, width, arch)
    of_new_key = interpret(run_no_number, "k_new", number, width, arch)
    for found in (of_key["o"], of_key["y_new"], of_new_key["o"], of_new_key["y_new"]):
        assert found.isnan().all(3).all(2)[0].tolist() == [True, False, False, False]
        assert found[:, 1:].isfinite().all()


@pytest.mark.parametrize(("arch", "float8"), [(80, False), (90, False), (100, False), (90, True)])
def test_a_bfloat16_key_whose_squares_are_beyond_float32_makes_no_nan(arch, float8, interpret):
    """Its inverse norm is 0, so that Y is V − exp(−√D) Σ Y; what hides tokens meets that 0, too."""
    _, y_new, given = interpret(run_beyond_squares, 70, arch, float8)
    v_new, y = (given[name].double() for name in ("v_new", "y"))
    wanted = v_new - math.exp(-math.sqrt(y.shape[-1])) * y[:, :, 3:].sum(2, keepdim=True)
    assert relative_error(y_new, wanted) <= 1.25 * relative_error(wanted.bfloat16(), wanted)


@pytest.mark.parametrize("exponent", [-40, 40])
def test_bfloat16_queries_and_keys_beyond_float16_meet_a_cache_of_e4m3_exactly(exponent, interpret):
    for found, wanted in zip(interpret(run_float8, exponent), interpret(run_float8, 0), strict=True):
        assert wanted.isfinite().all() and torch.equal(found, wanted)
