"""``lucid-deploy conformance`` and ``lucid-conformance``: the table, JSON, and the exit status."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import conformance, main
from lucid_deploy.conformance.case_files import write_case
from lucid_deploy.conformance.cases import make_case

ROOT = Path(__file__).resolve().parents[2]
NAME = "decode_attention_past"


@pytest.fixture
def wrong_case(tmp_path: Path) -> Path:
    """Return a folder with one case, whose expected output is another's."""
    other = make_case(f"{NAME}_bfloat16")
    write_case(tmp_path, dataclasses.replace(make_case(NAME), outputs=other.outputs))
    return tmp_path


def test_a_table_and_counts() -> None:
    result = CliRunner().invoke(main, ["conformance", "--kernels", "functions", "--only", NAME], terminal_width=160)
    assert result.exit_code == 0, result.output
    assert "2 passed, 0 failed, 1 not run" in result.stdout and NAME in result.stdout


def test_json_has_every_result() -> None:
    result = CliRunner().invoke(main, ["conformance", "--runtime", "torch", "--only", NAME, "--json"])
    found = json.loads(result.stdout)
    assert [each["status"] for each in found] == ["passed"] * 3
    assert found[0].keys() == {"case", "status", "errors", "tolerances", "remark"}


def test_a_case_that_fails_is_named(wrong_case: Path) -> None:
    result = CliRunner().invoke(main, ["conformance", "--cases", str(wrong_case)])
    assert result.exit_code == 1 and f"1 of 1 cases failed: {NAME}." in result.stderr
    assert "O is off" in result.stdout.replace("\n", " ")


def test_nothing_run_is_a_failure() -> None:
    result = CliRunner().invoke(main, ["conformance", "--only", "bfloat16"])
    assert result.exit_code == 1 and re.search(r"None of \d\d cases was run", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runtime", "tensorrt"], "runs artifacts only, no single graphs"),
        (["--provider", "cuda"], "--provider cuda runs artifacts only, no single graphs"),
        (["--runtime", "torch", "--kernels", "library"], "--kernels is for onnxruntime"),
        (["--cases", "nowhere"], "nowhere has no cases"),
        (["--only", "nothing"], "No case has 'nothing' in its name"),
        (["--write", "new", "--json"], "--write runs nothing"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["conformance", *arguments])
    assert result.exit_code == 2 and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_program_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["lucid-conformance"] == "lucid_deploy.cli.conformance:main"
    monkeypatch.setattr(sys, "argv", ["lucid-conformance", "--only", "scatter_row_buffer_int8"])
    with pytest.raises(SystemExit) as ended:
        conformance.main()
    assert ended.value.code == 0 and "1 passed" in capsys.readouterr().out
