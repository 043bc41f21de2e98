"""The stored cases are those that the generator makes; a case that nothing wrong fails is not written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lucid_deploy.conformance.case_files import CASES, Case, Output, case_names, read_case
from lucid_deploy.conformance.generate import main, model_case, operator_case
from lucid_deploy.conformance.model_problems import MODEL_PROBLEMS
from lucid_deploy.conformance.problem_list import PROBLEMS
from lucid_deploy.errors import LucidError
from lucid_deploy.plugins import table

REMEDY = "run: python -m lucid_deploy.conformance.generate"
LARGEST = 17 * 2**18  # bytes of all cases together


@pytest.fixture(scope="module")
def made() -> dict[str, Case]:
    cases = [*map(operator_case, PROBLEMS), *map(model_case, MODEL_PROBLEMS)]
    return {case.name: case for case in cases}


def outline(nodes: Iterable[onnx.NodeProto]) -> list[Any]:
    """Kinds and attributes of nodes: names of values between them may differ by the version of what wrote them."""
    found: list[Any] = []
    for node in nodes:
        for item in node.attribute:
            inner = item.type == onnx.AttributeProto.GRAPH
            found.append(outline(item.g.node) if inner else item.SerializeToString())
        found.append((node.domain, node.op_type, len(node.input), len(node.output)))
    return found


def test_the_stored_cases_are_those_that_are_made(made: dict[str, Case]) -> None:
    assert case_names() == sorted(made), REMEDY


@pytest.mark.parametrize("name", case_names())
def test_a_stored_case_is_what_is_made(made: dict[str, Case], name: str) -> None:
    stored, wanted = read_case(CASES / name), made[name]
    for kind in ("text", "operator", "type", "types", "derivation"):
        assert getattr(stored.description, kind) == getattr(wanted.description, kind), REMEDY
    assert outline(stored.model.graph.node) == outline(wanted.model.graph.node), REMEDY
    for function, other in zip(stored.model.functions, wanted.model.functions, strict=True):
        assert outline(function.node) == outline(other.node), f"the body of {function.name}: {REMEDY}"
    assert stored.model.graph.initializer == wanted.model.graph.initializer, REMEDY
    for ours, theirs in zip(stored.data_sets, wanted.data_sets, strict=True):
        for array, other in zip(ours.inputs.values(), theirs.inputs.values(), strict=True):
            np.testing.assert_array_equal(array, other, REMEDY)
        for array, other in zip(ours.outputs.values(), theirs.outputs.values(), strict=True):
            np.testing.assert_allclose(array, other, 3e-7, 1e-9, err_msg=REMEDY)  # another processor's last bit
    for item, new in zip(stored.description.outputs, wanted.description.outputs, strict=True):
        # The plain implementation's error depends on the order in which a processor, and a version of PyTorch, sums:
        # that of 2.15 is down to 0.31 of that of 2.13.
        assert new.tolerance / 4 <= item.tolerance <= new.tolerance * 4, REMEDY


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in CASES.rglob("*") if path.is_file()) < LARGEST


def test_a_case_that_is_too_wide_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wide(problem: Any) -> Case:
        case = operator_case(problem)
        outputs = [Output(item.name, 1e9, item.baseline) for item in case.description.outputs]
        fields = {name: getattr(case.description, name) for name in case.description.__struct_fields__}
        return replace(case, description=type(case.description)(**fields | {"outputs": outputs}))

    monkeypatch.setattr("lucid_deploy.conformance.generate.operator_case", wide)
    with pytest.raises(LucidError, match="No wrong kernel fails the case precondition_one_token: it is too wide"):
        main(tmp_path / "cases")
    assert not any(tmp_path.iterdir()), "all of it or nothing"


def test_tolerances_are_multiples_of_the_baseline(made: dict[str, Case]) -> None:
    for case in made.values():
        for item in case.description.outputs:
            floor = {"float32": 4e-7, "float16": 7.6e-4, "bfloat16": 6e-3}.get(case.description.type, 0)
            assert item.tolerance <= max(4.3 * item.baseline, floor)  # both were rounded to two digits
            assert case.description.operator != table.SCATTER_ROW.name or item.tolerance == 0
