"""``lucid-deploy package``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main

Exported = Callable[..., tuple[Path, Artifact]]


def test_a_model_repository_is_written_and_not_replaced(exported: Exported, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("target", ["triton", "tensorrt"])
def test_a_changed_file_is_not_packaged(target: str, artifact_copy: Path, tmp_path: Path) -> None:
    """In the package nobody could find the change: it has no hashes."""
    weights = artifact_copy / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.unlink()
    weights.write_bytes(content)
    result = CliRunner().invoke(main, ["package", str(artifact_copy), "--target", target, "-o", str(tmp_path / "out")])
    assert result.exit_code == 1 and "sha256 of weights.bin differs from the manifest" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_for_tensorrt_is_written(exported: Exported, plugin: Path, tmp_path: Path) -> None:
    _, artifact = exported()
    arguments = ["package", str(artifact.directory), "--target", "tensorrt", "--output", str(tmp_path / "package")]
    limits = ["--max-batch", "2", "--max-context", "64", "--prefill-chunk", "16", "--plugin", str(plugin)]
    result = CliRunner().invoke(main, [*arguments, *limits, "--json", "-"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["made"] == [str(tmp_path / "package")]
    facts = json.loads((tmp_path / "package" / "profiles.json").read_text())
    assert facts["limits"] == {"max_batch": 2, "max_context": 64, "prefill_chunk": 16}
    assert facts["attention"] == "explicit"


@pytest.mark.parametrize(
    ("target", "option", "other"), [("triton", "--max-batch", "tensorrt"), ("tensorrt", "--instances", "triton")]
)
def test_options_of_the_other_target_are_refused(target: str, option: str, other: str, tmp_path: Path) -> None:
    words = ["package", "nowhere", "--target", target, "--output", str(tmp_path / "out"), option, "2"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert f"{option} is for --target {other}. Leave it out." in result.stderr
