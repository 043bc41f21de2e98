"""``lucid-deploy bench --solvers``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main

Exported = Callable[..., tuple[Path, Artifact]]


def test_ways_to_solve_are_compared(exported: Exported, tmp_path: Path) -> None:
    target, directory = tmp_path / "out.json", str(exported()[1].directory)
    asked = ["bench", directory, "--solvers", "--lengths", "8,20", "--repeats", "1", "--threads", "1"]
    result = CliRunner().invoke(main, [*asked, "--json", str(target)])
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    assert len(report["rows"]) == 2 * 4 * 3 and report["machine"]["versions"]["torch"]
    said = " ".join(result.stdout.split())
    assert all(word in said for word in ("substitution", "powers", "bfloat16", "error of Y", "ms a layer"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--solvers", "--baseline", "standard"], "--baseline has nothing to do with --solvers"),
        (["--solvers", "--kernels", "functions"], "--kernels has nothing to do with --solvers"),
        (["--solvers", "--threads", "0"], "threads"),
        (["--questions", "3"], "--questions is for --solvers"),
        (["other", "--solvers"], "--solvers takes one artifact, not 2"),
    ],
)
def test_options_that_do_not_fit_solvers(words: list[str], message: str, exported: Exported) -> None:
    result = CliRunner().invoke(main, ["bench", str(exported()[1].directory), *words])
    assert result.exit_code == 2 and message in " ".join(result.stderr.split()), result.output
