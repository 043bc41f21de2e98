"""Cases are made as they were pinned, without PyTorch; a change of their numbers is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.conformance import cases
from lucid_deploy.conformance.case_files import read_case, stored_names
from lucid_deploy.conformance.cases import case_names, make_case, pinned, write_cases
from lucid_deploy.errors import LucidError
from lucid_deploy.plugins import table


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    return {name: make_case(name) for name in case_names()}


WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from lucid_deploy.cli import main; main(sys.argv[1:])"


def test_every_case_is_what_was_pinned(made: dict[str, Any]) -> None:
    assert [*made] == sorted(pinned())
    for case in made.values():
        assert [item.name for item in case.description.outputs] == list(case.outputs)


def test_tolerances_are_multiples_of_the_baseline(made: dict[str, Any]) -> None:
    for name, pin in pinned().items():
        kind = made[name].description
        floor = {"float32": 4e-7, "float16": 7.6e-4, "bfloat16": 6e-3}.get(kind.type, 0)
        for item in pin.outputs:
            assert item.tolerance <= max(4.3 * item.baseline, floor), name  # both were rounded to two digits
            assert kind.operator != table.SCATTER_ROW.name or item.tolerance == 0


def test_another_number_in_a_case_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = cases.FORMULAS[table.PRECONDITION.name]
    changed = {table.PRECONDITION.name: lambda *inputs, **attributes: (1.001 * exact(*inputs, **attributes)[0],)}
    monkeypatch.setattr(cases, "FORMULAS", {**cases.FORMULAS, **changed})
    with pytest.raises(LucidError, match="The case precondition_past has other numbers than"):
        make_case("precondition_past")


def test_cases_are_written_without_pytorch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "conformance", "--only", "past_padded", "--write", "cases"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "Wrote 7 cases to cases.\n"), result.stderr
    for name in stored_names(tmp_path / "cases"):
        stored, made = read_case(tmp_path / "cases" / name), make_case(name)
        assert stored.description == made.description and stored.model.graph == made.model.graph
        for one, other in zip(stored.data_sets, made.data_sets, strict=True):
            for each, array in {**other.inputs, **other.outputs}.items():
                np.testing.assert_array_equal({**one.inputs, **one.outputs}[each], array)


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(LucidError, match="exists and is not empty"):
        write_cases(tmp_path, "scatter_row")
    with pytest.raises(LucidError, match="No case has 'nothing' in its name"):
        write_cases(tmp_path / "new", "nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_cases_cover_every_type_of_every_operator(made: dict[str, Any]) -> None:
    described = [case.description for case in made.values()]
    for operator in table.OPERATORS:
        assert {each.type for each in described if each.operator == operator.name} == set(operator.types)
    assert {each.type for each in described if each.operator == "model"} == {"float32", "float16", "bfloat16"}
