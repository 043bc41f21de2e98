"""``lucid-deploy conformance`` and ``lucid-conformance``: the table, JSON, and the exit status."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import conformance, main

ROOT = Path(__file__).resolve().parents[2]
NAME = "decode_attention_past"


def test_a_table_and_counts_are_shown() -> None:
    result = CliRunner().invoke(main, ["conformance", "--kernels", "functions", "--only", NAME], terminal_width=160)
    assert result.exit_code == 0, result.output
    assert "2 passed, 0 failed, 1 not run" in result.stdout and NAME in result.stdout


def test_nothing_run_is_a_failure() -> None:
    result = CliRunner().invoke(main, ["conformance", "--only", "bfloat16"])
    assert result.exit_code == 1 and re.search(r"None of \d\d cases was run", result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cases", "nowhere"], "nowhere has no cases"),
        (["--only", "nothing"], "No case has 'nothing' in its name"),
        (["--write", "new", "--json"], "--write runs nothing"),
    ],
)
def test_bad_usage_is_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["conformance", *arguments])
    assert result.exit_code == 2 and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_lucid_conformance_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["lucid-conformance"] == "lucid_deploy.cli.conformance:main"
    monkeypatch.setattr(sys, "argv", ["lucid-conformance", "--only", "scatter_row_buffer_int8"])
    with pytest.raises(SystemExit) as ended:
        conformance.main()
    assert ended.value.code == 0 and "1 passed" in capsys.readouterr().out
