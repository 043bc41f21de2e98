"""Cases in a runtime: what passes, what fails and why, and what is not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.conformance.cases import make_case
from lucid_deploy.conformance.runner import FAILED, NOT_RUN, PASSED, run_case, run_cases
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import Capabilities, Runtime, RuntimeOptions, register_runtime, unregister_runtime
from lucid_deploy.runtimes.torch.graph import evaluated_graph
from tests.conformance.plain_kernels import PlainKernels
from tests.conformance.wrong_kernels import PastOffByOne

RUNTIMES = [("onnxruntime", {"kernels": "functions"}), ("openvino", {}), ("torch", {})]
NAME = "decode_attention_past"


class Own(Runtime):
    """A runtime as somebody else would write it, with kernels in Python."""

    name = "own"
    description = "Kernels in Python."

    def __init__(self, kernels: type[PlainKernels], spoil: Callable[[Any], Any] = lambda outputs: outputs) -> None:
        self.kernels, self.spoil = kernels, spoil

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        return Capabilities(opens_graphs=True)

    def open(self, artifact: Any, options: RuntimeOptions) -> Any:
        raise NotImplementedError

    def open_graph(self, model: Any, options: RuntimeOptions) -> Any:
        graph = evaluated_graph(model, self.kernels("float32").operators())

        def run(feed: Mapping[str, Any]) -> Any:
            return self.spoil(graph(feed))

        return run


@pytest.fixture
def own() -> Iterator[Callable[..., RuntimeOptions]]:
    def register(*arguments: Any) -> RuntimeOptions:
        register_runtime(Own(*arguments))
        return RuntimeOptions("own")

    yield register
    unregister_runtime("own")


@pytest.mark.parametrize(("runtime", "options"), RUNTIMES, ids=lambda value: str(value))
def test_our_runtimes_pass_all_cases(runtime: str, options: dict[str, str]) -> None:
    results = run_cases(RuntimeOptions(runtime, **options))
    assert [(each.case, each.errors, each.remark) for each in results if each.status == FAILED] == []
    not_run = {each.case for each in results if each.status == NOT_RUN}
    lacks = ("bfloat16", "float8") if runtime == "openvino" else ("bfloat16",)
    assert all(any(kind in name for kind in lacks) for name in not_run) and bool(not_run) == (runtime != "torch")
    assert sum(each.status == PASSED for each in results) >= 55


def test_the_library_of_kernels_passes_all_cases(built_library: Path) -> None:
    results = run_cases(RuntimeOptions(kernels="library"))
    assert [(each.case, each.errors, each.remark) for each in results if each.status == FAILED] == []
    assert sum(each.status == PASSED for each in results) >= 55


def test_a_wrong_runtime_fails(own: Callable[..., RuntimeOptions]) -> None:
    right, wrong = run_cases(own(PastOffByOne), only="causal_attention_one_token"), None
    assert {each.status for each in right} == {PASSED}
    (wrong,) = run_cases(RuntimeOptions("own"), only="decode_attention_repeated")
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
def test_what_is_wrong_is_said(own: Callable[..., RuntimeOptions], spoil: Callable[[Any], Any], remark: str) -> None:
    (result,) = run_cases(own(PlainKernels, spoil), only="decode_attention_repeated")
    assert result.status == FAILED and remark in result.remark
    assert all(error is None or np.isfinite(error) for error in result.errors.values()), "JSON has no infinity"


def test_the_data_sets_that_are_off_are_named(own: Callable[..., RuntimeOptions]) -> None:
    calls = iter(range(1000))

    def spoil(outputs: Any) -> Any:
        return outputs if next(calls) not in (2, 5) else {name: array * np.nan for name, array in outputs.items()}

    (result,) = run_cases(own(PlainKernels, spoil), only="causal_attention_boundaries")[:1]
    assert result.status == FAILED and result.remark == "O is off in test_data_set_2, test_data_set_5"


def test_a_type_that_is_missing_is_not_run() -> None:
    case, own = make_case(f"{NAME}_float16"), Own(PlainKernels)
    result = run_case(case, own, RuntimeOptions("own"), own.capabilities(RuntimeOptions("own")))
    assert (result.status, result.remark) == (NOT_RUN, "own has no float16")


def test_what_cannot_be_run_is_refused() -> None:
    with pytest.raises(LucidError, match="Runtime tensorrt runs artifacts only, no single graphs"):
        run_cases(RuntimeOptions("tensorrt"))
    with pytest.raises(LucidError, match="No case has 'nothing' in its name"):
        run_cases(RuntimeOptions(), only="nothing")
