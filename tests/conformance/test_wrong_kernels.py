"""Each wrong kernel fails a case, and the right one passes them all."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from lucid_deploy.conformance.case_files import CASES, Case, case_names, read_case
from lucid_deploy.conformance.plain import PlainKernels
from lucid_deploy.conformance.problems import EPSILON
from lucid_deploy.conformance.run_kernels import run_kernels
from lucid_deploy.conformance.wrong_kernels import (
    WRONG,
    NormalizedKeysCached,
    StaleBufferRow,
    WeightsInBfloat16,
)


@functools.cache
def case(name: str) -> Case:
    return read_case(CASES / name)


@functools.cache
def failed(kernels: type[PlainKernels]) -> dict[str, dict[str, float]]:
    found = {name: run_kernels(case(name), kernels) for name in case_names() if name != "precondition_long"}
    return {name: errors for name, errors in found.items() if errors}


def test_there_are_fifteen() -> None:
    assert len(set(WRONG)) == 15


def test_the_right_ones_pass_every_case() -> None:
    assert failed(PlainKernels) == {}


@pytest.mark.parametrize("kernels", WRONG, ids=lambda kernels: kernels.__name__)
def test_a_wrong_one_fails(kernels: type[PlainKernels]) -> None:
    assert failed(kernels), f"no case finds: {kernels.__doc__}"


def test_every_case_is_failed_by_a_wrong_one() -> None:
    assert set(case_names()) - {"precondition_long"} == {name for kernels in WRONG for name in failed(kernels)}


def test_weights_in_bfloat16_are_found_in_bfloat16_itself() -> None:
    """Where tensors have no more bits than the weights then have."""
    assert any(name.endswith("bfloat16") for name in failed(WeightsInBfloat16))


def test_what_only_a_model_shows_is_found_in_models() -> None:
    assert all(name.startswith("model_") for name in failed(NormalizedKeysCached))
    assert "model_decode_static" in failed(StaleBufferRow) and "scatter_row_buffer" in failed(StaleBufferRow)


def test_kernels_that_know_no_other_diagonal_are_found() -> None:
    class UnitDiagonal(PlainKernels):
        def precondition(self, *inputs: Any, **attributes: Any) -> Any:
            return super().precondition(*inputs[:5], EPSILON)

    named = [name for name in case_names() if name.endswith("_diagonal")]
    assert len(named) == 5 and all(run_kernels(case(name), UnitDiagonal) for name in named)
