"""``lucid-deploy verify`` with ``--golden``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main
from tests.parity.recording_models import record_lucid


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(main, ["verify", *map(str, arguments), "--quick", "--steps", "4"], catch_exceptions=False)


def message(result: Any) -> str:
    return " ".join(result.stderr.split())


@pytest.fixture
def example(exported: Any, tmp_path: Path) -> tuple[Path, Path, Path]:
    """An artifact, a golden file that agrees with it, and one recorded with training's diagonal, which does not."""
    checkpoint, artifact = exported(max_position_embeddings=48)
    right = record_lucid(checkpoint, tmp_path / "right.safetensors", tokens=20)
    return artifact.directory, right, record_lucid(checkpoint, tmp_path / "wrong.safetensors", "training", tokens=20)


def test_a_golden_file_that_agrees_passes(example: tuple[Path, Path, Path]):
    artifact, right, _ = example
    result = run(artifact, "--golden", right)
    assert result.exit_code == 0, result.output
    words = " ".join(result.stdout.split())
    assert "against the golden file" in words.partition("Parts of")[0] and "golden file (passed)" in words


def test_a_golden_file_that_disagrees_fails(example: tuple[Path, Path, Path], tmp_path: Path):
    artifact, _, wrong = example
    result = run(artifact, "--golden", wrong, "--json", tmp_path / "out.json", "--report", tmp_path / "page.html")
    assert result.exit_code == 1
    assert "layer 0 Y is beyond its gate" in message(result) and "against golden file" in message(result)
    assert "both read the checkpoint differently" in " ".join(result.stdout.split())
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["first_failure"]["against"] == "golden file" and data["passed"] is False
    assert "golden file" in (tmp_path / "page.html").read_text()


def test_bad_input_is_one_message(example: tuple[Path, Path, Path], tmp_path: Path):
    artifact, right, _ = example
    (tmp_path / "cut.safetensors").write_bytes(right.read_bytes()[:2000])
    for arguments, words in (
        (["--golden", tmp_path / "none.safetensors"], "There is no golden file"),
        (["--golden", tmp_path / "cut.safetensors"], "is not a valid safetensors file"),
    ):
        result = run(artifact, *arguments)
        assert result.exit_code == 2 and words in message(result), result.output
        assert "Traceback" not in result.output
