"""Cases in a runtime: what passes, what fails and why, and what is not run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lucid_deploy.conformance.cases import make_case
from lucid_deploy.conformance.runner import FAILED, NOT_RUN, PASSED, Graph, Opener, run_case, run_cases
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import RuntimeOptions
from tests.conformance.evaluator import evaluated_graph
from tests.conformance.plain_kernels import PlainKernels
from tests.conformance.wrong_kernels import PastOffByOne


def opener(kernels: type[PlainKernels], spoil: Callable[[Any], Any] = lambda outputs: outputs) -> Opener:
    """Return a function that opens graphs with kernels in Python."""

    def open_graph(model: onnx.ModelProto) -> Graph:
        graph = evaluated_graph(model, kernels("float32").operators())
        return lambda feed: spoil(graph(feed))

    return open_graph


def test_onnxruntime_passes_all_cases() -> None:
    results = run_cases(RuntimeOptions(kernels="functions"))
    assert [(each.case, each.errors, each.remark) for each in results if each.status == FAILED] == []
    not_run = {each.case for each in results if each.status == NOT_RUN}
    assert not_run and all("bfloat16" in name for name in not_run)
    assert sum(each.status == PASSED for each in results) >= 55


def test_the_library_of_kernels_passes_all_cases(built_library: Path) -> None:
    results = run_cases(RuntimeOptions(kernels="library"))
    assert [(each.case, each.errors, each.remark) for each in results if each.status == FAILED] == []
    assert sum(each.status == PASSED for each in results) >= 55


def test_a_wrong_runtime_fails() -> None:
    right, wrong = (
        run_case(make_case(name), opener(PastOffByOne))
        for name in ("causal_attention_one_token", "decode_attention_repeated")
    )
    assert right.status == PASSED
    assert wrong.status == FAILED and "Y_new is off" in wrong.remark
    assert (wrong.errors["Y_new"] or 0) > wrong.tolerances["Y_new"]


@pytest.mark.parametrize(
    ("spoil", "remark"),
    [
        (lambda outputs: {name: array * np.nan for name, array in outputs.items()}, "O is off"),
        (lambda outputs: {name: array.astype("f8") for name, array in outputs.items()}, "O is float64"),
        (lambda outputs: {name: array[:, :1] for name, array in outputs.items()}, "O is off"),
        (lambda outputs: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
    ids=["NaN", "another type", "another shape", "an exception"],
)
def test_a_failed_case_says_what_is_wrong(spoil: Callable[[Any], Any], remark: str) -> None:
    result = run_case(make_case("decode_attention_repeated"), opener(PlainKernels, spoil))
    assert result.status == FAILED and remark in result.remark
    assert all(error is None or np.isfinite(error) for error in result.errors.values()), "JSON has no infinity"


def test_the_data_sets_that_are_off_are_named() -> None:
    calls = iter(range(1000))

    def spoil(outputs: Any) -> Any:
        return outputs if next(calls) not in (2, 5) else {name: array * np.nan for name, array in outputs.items()}

    result = run_case(make_case("causal_attention_boundaries"), opener(PlainKernels, spoil))
    assert result.status == FAILED and result.remark == "O is off in test_data_set_2, test_data_set_5"


def test_a_type_that_is_missing_is_not_run() -> None:
    result = run_case(make_case("decode_attention_past_bfloat16"), opener(PlainKernels))
    assert (result.status, result.remark) == (NOT_RUN, "onnxruntime has no bfloat16")


def test_a_name_that_no_case_has_is_refused() -> None:
    with pytest.raises(LucidError, match="No case has 'nothing' in its name"):
        run_cases(RuntimeOptions(), only="nothing")
