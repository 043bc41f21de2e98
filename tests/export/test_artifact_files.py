"""The files of an artifact: all of them listed with size and hash, and nothing of the machine that made them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact, check_hashes, open_artifact
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed
from lucid_deploy.export import export

Exported = Callable[..., tuple[Path, Artifact]]


def test_manifest_names_every_file(exported: Exported) -> None:
    _, artifact = exported()
    on_disk = {path.name for path in artifact.directory.iterdir()}
    assert on_disk == {"lucid.json", *artifact.manifest.files}
    data = json.loads((artifact.directory / "lucid.json").read_text())
    assert data["format"] == "lucid-deploy" and data["format_version"] == 3
    assert set(data["versions"]) >= {"lucid-deploy", "torch", "onnx", "onnxscript"}
    check_hashes(artifact)


def test_further_chat_templates_are_copied_and_listed(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(num_hidden_layers=1)
    folder = checkpoint / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("{{ tools }}")
    (folder / "notes.txt").write_text("nobody needs this")
    artifact = export(checkpoint, tmp_path / "artifact")
    name = "additional_chat_templates/tool_use.jinja"
    on_disk = {path.relative_to(artifact.directory).as_posix() for path in artifact.directory.rglob("*.*")}
    assert on_disk == {"lucid.json", *artifact.manifest.files} and name in on_disk
    assert name in CliRunner().invoke(main, ["inspect", str(artifact.directory), "--check"]).stdout
    artifact.path(name).write_text("{{ 'else' }}")
    with pytest.raises(CheckFailed, match=f"sha256 of {name} differs"):
        check_hashes(artifact)
    artifact.path(name).unlink()
    with pytest.raises(CheckFailed, match=f"{name} is missing"):
        open_artifact(artifact.directory)


def test_graphs_hold_no_paths_of_the_exporting_machine(exported: Exported) -> None:
    _, artifact = exported()
    for stage in ("prefill", "decode"):
        content = artifact.graph_path(stage).read_bytes()
        assert b"/lucid_deploy/" not in content and b"site-packages" not in content
