"""How far an output is off: the worst batch row counts, and nothing that is no number passes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lucid_deploy.conformance.compare import relative_error

ONES = np.ones((2, 3, 4), np.float32)


def test_the_worst_batch_row_counts() -> None:
    found = ONES.copy()
    found[1] *= 1.5
    assert relative_error(found, ONES) == pytest.approx(0.5)
    assert relative_error(ONES, ONES) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_infinitely_wrong(value: float) -> None:
    found = ONES.copy()
    found[0, 0, 0] = value
    assert relative_error(found, ONES) == math.inf


def test_another_shape_is_infinitely_wrong() -> None:
    assert relative_error(ONES[:, :2], ONES) == math.inf


def test_zeros_may_not_become_something() -> None:
    assert relative_error(ONES, 0 * ONES) > 1
    assert relative_error(0 * ONES, 0 * ONES) == 0
    assert relative_error(ONES[:, :0], ONES[:, :0]) == 0
