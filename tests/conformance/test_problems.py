"""Inputs are what their problem says: correlated or repeated keys, padding, hidden rows, and always the same."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.conformance.problems import Problem, make_inputs
from lucid_deploy.plugins import table


@pytest.mark.parametrize("correlation", [0.0, 0.9, 0.99])
def test_keys_correlate_so_much(correlation: float) -> None:
    keys = make_inputs(Problem(table.PRECONDITION, "x", "", new=60, width=200, keys=correlation))["K"].astype("f8")
    unit = keys / np.linalg.norm(keys, axis=-1, keepdims=True)
    cosines = (unit @ unit.swapaxes(2, 3))[..., *np.triu_indices(60, 1)]
    assert cosines.mean() == pytest.approx(correlation, abs=0.05)


def test_repeated_keys_are_three() -> None:
    keys = make_inputs(Problem(table.PRECONDITION, "x", "", new=10, keys=1.0))["K"]
    assert len(np.unique(keys[0, 0], axis=0)) == 3


def test_hidden_rows_and_padding_are_in_the_mask() -> None:
    inputs = make_inputs(Problem(table.DECODE_ATTENTION, "x", "", past=9, hidden=3, padded=True, batch=2))
    assert inputs["K"].shape[2] == 12 and inputs["mask"].shape == (2, 13)
    assert not inputs["mask"][:, 9:12].any() and inputs["mask"][:, 12].all()
    assert not inputs["mask"][1, :4].any() and not inputs["mask"][0, 6:8].any()


def test_rows_of_int8_fill_its_range() -> None:
    inputs = make_inputs(Problem(table.DECODE_ATTENTION_INT8, "x", "", past=9))
    assert inputs["K"].dtype == np.int8 and (np.abs(inputs["K"]).max(-1) == 127).all()
    assert inputs["K_scale"].dtype == np.float32


def test_the_same_problem_has_the_same_numbers_and_another_has_others() -> None:
    first, again, other = (
        make_inputs(Problem(table.SCATTER_ROW, name, "", new=4))["cache"] for name in ("a", "a", "b")
    )
    assert (first == again).all() and (first != other).any()
