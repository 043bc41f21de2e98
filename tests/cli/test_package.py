"""``lucid-deploy package``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main

Exported = Callable[..., tuple[Path, Artifact]]


def test_the_command(exported: Exported, tmp_path: Path) -> None:
    _, artifact = exported()
    arguments = ["package", str(artifact.directory), "--target", "triton", "--output", str(tmp_path / "models")]
    result = CliRunner().invoke(main, [*arguments, "--name", "lucid", "--json", "-"])
    assert result.exit_code == 0, result.output
    assert [Path(path).name for path in json.loads(result.stdout)["made"]] == ["lucid-prefill", "lucid-decode"]
    result = CliRunner().invoke(main, [*arguments, "--name", "lucid"])
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    (tmp_path / "file").touch()
    result = CliRunner().invoke(main, [*arguments[:-1], str(tmp_path / "file")])
    assert result.exit_code == 2
    assert "file is a file; a model repository is a directory" in result.stderr
