"""The script that runs the cases without the toolkit: what it imports, its table, and its exit status."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lucid_deploy.conformance import run as script
from lucid_deploy.conformance.case_files import write_case
from lucid_deploy.conformance.cases import make_case, write_cases
from lucid_deploy.conformance.runner import relative_error

SCRIPT = Path(script.__file__)
NAME = "decode_attention_past"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_case(tmp_path, make_case(NAME))
    return tmp_path


def test_the_script_needs_only_three_packages() -> None:
    imported = {
        (node.names[0].name if isinstance(node, ast.Import) else str(node.module)).split(".")[0]
        for node in ast.walk(ast.parse(SCRIPT.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnx", "onnxruntime"}


def test_cases_pass_in_onnxruntime_with_functions_and_with_kernels(tmp_path: Path, cpu_library: Path) -> None:
    write_cases(tmp_path / "cases", "past")
    for options in ((), ("--library", cpu_library)):
        result = run("--cases", tmp_path / "cases", *options)
        assert result.returncode == 0, result.stdout[-500:]
        assert "0 FAILED" in result.stdout and f"\n{NAME} " in result.stdout


def test_a_case_that_fails_fails_the_run(folder: Path) -> None:
    write_case(folder / "other", make_case("decode_attention_repeated"))  # of one head
    shutil.move(folder / "other" / "decode_attention_repeated" / "model.onnx", folder / NAME / "model.onnx")
    result = run("--cases", folder)
    assert result.returncode == 1 and "1 FAILED" in result.stdout and f"{NAME} " in result.stdout


def test_every_data_set_counts(tmp_path: Path) -> None:
    write_case(tmp_path, make_case("decode_attention_boundaries"))
    last, other = (tmp_path / "decode_attention_boundaries" / f"test_data_set_{number}" for number in (7, 6))
    for kind in ("input_3", "input_4", "input_5"):  # K, Y and the mask of fewer tokens: right numbers for other inputs
        shutil.copy(other / f"{kind}.pb", last)
    result = run("--cases", tmp_path)
    assert result.returncode == 1 and "1 FAILED" in result.stdout
    shutil.rmtree(other)
    result = run("--cases", tmp_path)
    assert result.returncode == 2 and "test_data_set_6" in result.stderr


def test_a_folder_without_cases_is_one_line(tmp_path: Path) -> None:
    result = run("--cases", tmp_path)
    assert result.returncode == 2 and "lucid-deploy conformance --write" in result.stderr


def test_types_that_are_not_wanted_are_not_run(folder: Path) -> None:
    result = run("--cases", folder, "--types", "float16")
    assert result.returncode == 1 and "0 passed, 0 FAILED, 1 not run" in result.stdout


@pytest.mark.parametrize("damage", ["no number", "no field", "cut"])
def test_damaged_cases_are_one_line(folder: Path, damage: str) -> None:
    path = folder / NAME / "case.json"
    case = json.loads(path.read_text())
    if damage == "no number":
        case["outputs"][0]["tolerance"] = "wide"
    elif damage == "no field":
        del case["outputs"]
    path.write_text(json.dumps(case)[: -5 if damage == "cut" else None])
    result = run("--cases", folder)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and "cannot be read" in result.stderr


def test_a_tolerance_that_is_no_number_passes_nothing(folder: Path) -> None:
    path = folder / NAME / "case.json"
    case = json.loads(path.read_text())
    case["outputs"][0]["tolerance"] = float("nan")
    path.write_text(json.dumps(case))
    assert run("--cases", folder).returncode == 1


def test_errors_are_measured_as_in_the_toolkit() -> None:
    import numpy as np

    found, wanted = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    assert script.relative_error(found, wanted) == relative_error(found, wanted)
    assert script.relative_error(found[:2], wanted) == script.relative_error(found * np.nan, wanted) == np.inf
