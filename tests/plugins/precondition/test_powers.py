"""The powers of two that bring float32 into float16's range, in the interpreter, alone."""

from __future__ import annotations

import math

import pytest
import torch

from tests.plugins.precondition.power_runs import run_keys, run_places, run_rows


def test_a_key_has_32_to_64_for_its_norm_and_the_rest_is_left(interpret):
    found = {name: tensor.double() for name, tensor in interpret(run_keys).items()}
    norms, powers, factors = (found[name][:-3] for name in ("norms", "powers", "factors"))
    assert bool((powers.log2() == powers.log2().round()).all()), "multiplying is exact"
    assert torch.equal(powers * factors, norms)
    size = powers / norms  # of a key whose inverse norm this is
    assert bool(((size > 32) & (size <= 64)).all())


def test_padding_has_power_0_and_what_has_no_norm_no_number(interpret):
    found = interpret(run_keys)
    assert found["powers"][-3:].tolist() == [0.0, math.inf, math.inf]
    assert (0.0 * found["powers"][-2:]).isnan().all(), "a key of zeros whose norm is infinite"
    assert bool(found["factors"][-3:-1].isfinite().all())


@pytest.mark.parametrize("largest", [1.0, 1.999, 2.0, 3e38, 1e-20, 0.3, 65504.0])
def test_the_largest_number_of_y_is_2_to_the_14_at_least_and_the_factor_takes_it_back(largest, interpret):
    found, power, factor = interpret(run_rows, [largest / 3, -largest, 0.0])
    assert found == torch.tensor(largest).item()
    assert 2.0**14 <= found * power < 2.0**15 and math.log2(power).is_integer()
    assert power * factor == 2.0**-9


def test_infinite_values_do_not_take_the_others_digits(interpret):
    assert interpret(run_rows, [math.inf, -3.0, math.nan])[:2] == (3.0, 2.0**13)


@pytest.mark.parametrize("values", [[0.0], [1e-35], [math.inf], [math.nan]])
def test_without_a_number_that_counts_the_power_is_finite(values, interpret):
    _, power, factor = interpret(run_rows, values)
    assert power == 2.0**104 and power * factor == 2.0**-9


@pytest.mark.parametrize(("heads", "past", "rows"), [(1, 0, 1), (3, 0, 2), (3, 1, 2), (2, 64, 3), (2, 65, 3)])
def test_every_head_has_places_of_its_own(heads, past, rows, interpret):
    parts = -(-past // 64)
    wanted = [float(head + 1) if i == 0 else 0.0 for head in range(heads) for i in range(parts)]
    wanted += [100.0 + head if i == 0 else 0.0 for head in range(heads) for i in range(rows)]
    assert interpret(run_places, heads, past, rows) == wanted
