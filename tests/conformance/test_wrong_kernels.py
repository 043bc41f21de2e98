"""Each wrong kernel fails a case, and the right one passes them all."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest

from lucid_deploy.conformance.case_files import Case
from lucid_deploy.conformance.cases import case_names, make_case
from lucid_deploy.conformance.formulas import Array
from lucid_deploy.conformance.problems import EPSILON
from lucid_deploy.conformance.runner import relative_error
from lucid_deploy.plugins import table
from lucid_deploy.plugins.table import Operator
from tests.conformance.pin import failed_outputs
from tests.conformance.plain_kernels import PlainKernels
from tests.conformance.wrong_kernels import WRONG, StaleBufferRow, WeightsInBfloat16

LONG = "precondition_long"  # row by row in Python, this one takes as long as all others together


@functools.cache
def case(name: str) -> Case:
    return make_case(name)


NAMES = [name for name in case_names() if name != LONG]


def fails(kernels: type[PlainKernels], names: Iterable[str] = NAMES) -> bool:
    return any(failed_outputs(case(name), kernels) for name in names)


def test_the_plain_kernels_pass_every_case() -> None:
    assert not fails(PlainKernels)


@pytest.mark.parametrize("kernels", WRONG, ids=lambda kernels: kernels.__name__)
def test_a_wrong_kernel_fails_a_case(kernels: type[PlainKernels]) -> None:
    assert fails(kernels), f"no case finds: {kernels.__doc__}"


def test_weights_in_bfloat16_are_found_by_cases_in_bfloat16() -> None:
    """There the tensors have no more bits than these weights."""
    assert fails(WeightsInBfloat16, (name for name in NAMES if name.endswith("bfloat16")))


def test_a_stale_buffer_row_is_found_in_a_model_and_alone() -> None:
    assert fails(StaleBufferRow, ["model_decode_static"]) and fails(StaleBufferRow, ["scatter_row_buffer"])


NEW, PAST = "new tokens", "tokens of the cache"
EVERY, FEWER = (2, 63, 64, 65, 96, 97, 127, 128, 129), (64, 65, 129)


@pytest.mark.parametrize(
    ("operator", "dtype", "of", "lengths"),
    [
        (table.PRECONDITION, "float32", NEW, (1, *EVERY)),
        (table.PRECONDITION, "float32", PAST, EVERY),
        (table.CAUSAL_ATTENTION, "float32", NEW, (1, *EVERY)),
        (table.CAUSAL_ATTENTION, "float32", PAST, EVERY),
        (table.DECODE_ATTENTION, "float32", PAST, (1, *EVERY)),
        (table.DELTA_RULE, "float32", NEW, (1, 2, 63, 64, 65, 127, 128, 129)),
        (table.DECODE_ATTENTION_INT8, "float32", PAST, FEWER),
        (table.DECODE_ATTENTION_FLOAT8, "float16", PAST, FEWER),
    ],
)
def test_a_row_that_is_not_written_at_one_length_is_found(
    operator: Operator, dtype: str, of: str, lengths: tuple[int, ...]
) -> None:
    """Just as many tokens as a block has, one more or one less."""

    def kernels(length: int) -> type[PlainKernels]:
        class LastRowNotWritten(PlainKernels):
            def operators(self) -> Mapping[str, Any]:
                compute = super().operators()[operator.name]

                def wrong(*inputs: Array, **attributes: float) -> tuple[Array, ...]:
                    new, total = inputs[0].shape[2], dict(zip(operator.input_names, inputs, strict=True)).get("mask")
                    past = 0 if total is None else total.shape[1] - new
                    first, *others = compute(*inputs, **attributes)
                    if length == {NEW: new, PAST: past}[of]:
                        first[:, :, -1] = np.nan
                    return first, *others

                return {operator.name: wrong}

        return LastRowNotWritten

    described = [case(name) for name in NAMES]
    cases = [each for each in described if (each.description.operator, each.description.type) == (operator.name, dtype)]
    passing = [length for length in lengths if not any(failed_outputs(each, kernels(length)) for each in cases)]
    assert not passing, f"kernels that are wrong at just these numbers of {of} are not found"


def test_kernels_without_trainings_diagonal_are_found() -> None:
    class UnitDiagonal(PlainKernels):
        def precondition(self, *inputs: Any, **attributes: Any) -> Any:
            return super().precondition(*inputs[:5], EPSILON)

    named = [name for name in case_names() if name.endswith("_diagonal")]
    assert len(named) == 6 and all(failed_outputs(case(name), UnitDiagonal) for name in named)


def test_an_error_is_that_of_the_worst_batch_row_and_nan_never_passes() -> None:
    ones = np.ones((2, 3, 4), np.float32)
    worse = ones.copy()
    worse[1] *= 1.5
    assert relative_error(worse, ones) == pytest.approx(0.5) and relative_error(ones, ones) == 0
    assert relative_error(ones * np.nan, ones) == relative_error(ones[:, :2], ones) == np.inf
    assert relative_error(ones, 0 * ones) > 1 and relative_error(0 * ones, 0 * ones) == 0
