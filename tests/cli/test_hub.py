"""``lucid-deploy export org/name``, from a stand-in of the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import open_artifact
from lucid_deploy.cli import main
from tests.model.hub_stand_in import serve_hub

MakeCheckpoint = Callable[..., Path]
NAME = "org/tiny-lucid"


def run(*arguments: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(item) for item in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout, result.stderr


def test_a_model_of_the_hub_becomes_an_artifact(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = make_checkpoint("published", num_hidden_layers=1)
    words = ("export", NAME, "--revision", "v1", "-o")
    with serve_hub(tmp_path / "cache") as hub:
        commit = hub.add(NAME, published, revision="v1")
        code, said, error = run(*words, tmp_path / "artifact")
        assert code == 0, error
        first, *others = said.splitlines()
        assert first.startswith(f"Exported {NAME} to {tmp_path / 'artifact'}: ")
        assert others == [f"From the Hugging Face Hub: {NAME}, commit {commit}."]
        manifest = open_artifact(tmp_path / "artifact").manifest
        assert manifest.hub == {"repository": NAME, "revision": "v1", "commit": commit}
        assert json.loads(run("inspect", tmp_path / "artifact", "--json", "-")[1])["hub"] == manifest.hub
        # Without the Hub, the download is still there: to verify with, and to export again.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert "PASSED" in run("verify", tmp_path / "artifact", "--steps", 2)[1]
        code, _, error = run(*words, tmp_path / "again")
        assert code == 0, error
    assert open_artifact(tmp_path / "again").manifest.files == manifest.files
    (tmp_path / "cache").rename(tmp_path / "moved")
    assert f"hf download {NAME} --revision {commit}" in run("verify", tmp_path / "artifact")[2]


def test_a_revision_of_a_directory_is_refused(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    code, _, error = run("export", make_checkpoint(), "-o", tmp_path / "artifact", "--revision", "main")
    assert code == 2
    assert "--revision is for a model of the Hugging Face Hub, org/name, which " in error
