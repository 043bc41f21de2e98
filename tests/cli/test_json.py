"""Results as JSON, on stdout or in a file, and nothing else on stdout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main

Exported = Callable[..., tuple[Path, Artifact]]


def printed(*arguments: Any) -> Any:
    result = CliRunner().invoke(main, [*map(str, arguments), "--json", "-"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_export(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, artifact = exported()
    monkeypatch.setattr("lucid_deploy.export.export", lambda *_: artifact)  # the real one has its own tests
    facts = printed("export", checkpoint, "--output", tmp_path / "artifact")
    assert facts["artifact"] == str(artifact.directory)
    assert facts["files"] == artifact.manifest.files


def test_export_says_where_in_one_line(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, artifact = exported()
    moved = Artifact(tmp_path / ("long" * 20) / "[/bold]", artifact.manifest)  # what a console could take for markup
    monkeypatch.setattr("lucid_deploy.export.export", lambda *_: moved)
    result = CliRunner().invoke(main, ["export", str(checkpoint), "--output", str(moved.directory)])
    assert result.exit_code == 0
    first, *more = result.stdout.splitlines()
    assert f"to {moved.directory}: prefill.onnx " in first
    assert all(line.startswith("The diagonal of L is 1") for line in more)


def test_inspect(exported: Exported) -> None:
    _, artifact = exported()
    facts = printed("inspect", artifact.directory, "--check", "--batch", 2, "--context", 100)
    assert facts["hashes_checked"] is True
    assert facts["model"] == artifact.config.to_dict()
    assert facts["files"] == artifact.manifest.files
    assert [item["name"] for item in facts["graphs"]["decode"]["inputs"][:3]] == [
        "input_ids",
        "attention_mask",
        "position_ids",
    ]
    # Rows, tokens, K and Y, layers, key/value heads, width, bytes.
    assert facts["memory"]["cache"] == 2 * 100 * 2 * 2 * 2 * 36 * 4


def test_inspect_into_a_file_beside_the_table(exported: Exported, tmp_path: Path) -> None:
    _, artifact = exported()
    result = CliRunner().invoke(main, ["inspect", str(artifact.directory), "--json", str(tmp_path / "facts.json")])
    assert result.exit_code == 0
    assert json.loads((tmp_path / "facts.json").read_text())["artifact"] == str(artifact.directory)
    assert "past_key_values.{0..1}.key" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]


def test_doctor() -> None:
    findings = {item["name"]: item["status"] for item in printed("doctor")}
    assert findings["torch"] == findings["onnxruntime"] == "ok"
