"""``lucid-deploy export org/name``, from a stand-in of the Hub, and wrong forms of its options."""

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


def test_a_model_of_the_hub_becomes_an_artifact(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    published = make_checkpoint("published", num_hidden_layers=1)
    token = tmp_path / "token"
    token.write_text("secret\n")
    token.chmod(0o600)
    where = ("--hub-cache", tmp_path / "cache", "--token-file", token)
    with serve_hub() as hub:
        commit = hub.add(NAME, published, revision="v1", token="secret")
        words = ("export", NAME, "-o", tmp_path / "artifact", "--hub-endpoint", f"{hub.endpoint}/", "--revision", "v1")
        code, said, error = run(*words, *where)
    assert code == 0, error
    lines = said.splitlines()
    assert lines[0].startswith(f"Exported {NAME} to {tmp_path / 'artifact'}: ")
    assert [line for line in lines[1:] if not line.startswith("The diagonal of L is 1")] == [
        f"From the Hugging Face Hub: {NAME}, commit {commit}."
    ]
    manifest = open_artifact(tmp_path / "artifact").manifest
    assert manifest.hub == {"repository": NAME, "revision": "v1", "commit": commit}
    assert json.loads(run("inspect", tmp_path / "artifact", "--json", "-")[1])["hub"] == manifest.hub
    # With the Hub gone, the download is still there: to verify with, and to export again.
    assert "PASSED" in run("verify", tmp_path / "artifact", "--steps", 2)[1]
    code, _, error = run("export", NAME, "-o", tmp_path / "again", "--revision", "v1", "--offline", *where)
    assert code == 0, error
    assert open_artifact(tmp_path / "again").manifest.files == manifest.files
    (tmp_path / "cache").rename(tmp_path / "moved")
    assert f"hf download {NAME} --revision {commit}" in run("verify", tmp_path / "artifact")[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--hub-endpoint", "huggingface.co"), "--hub-endpoint huggingface.co is no address"),
        (("--revision", ""), "--revision is empty"),
        (("--token-file", "{}/nothing"), "nothing cannot be read: No such file or directory"),
        (("--token-file", "{}/empty"), "empty holds no token"),
        (("--token-file", "{}/lines"), "lines holds no token"),
        (("--token-file", "{}/bytes"), "bytes cannot be read: 'utf-8' codec can't decode"),
        (("--token-file", "{}/open"), "can be read by every user of this machine; run: chmod o-r"),
        (("--hub-endpoint", "http://127.0.0.1:1"), "could not be downloaded from http://127.0.0.1:1"),
        (("--offline", "--hub-cache", "{}/cache"), "at revision main was not downloaded before"),
    ],
)
def test_options_that_are_wrong(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    for name, content in {"empty": b"", "lines": b"a\nb", "bytes": b"\xff", "open": b"secret"}.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o644 if name == "open" else 0o600)
    words = [word.format(tmp_path) for word in options]
    code, out, error = run("export", NAME, "-o", tmp_path / "artifact", *words)
    assert (code, out, len(error.splitlines())) == (2, "", 1)
    assert said in error
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("options", [("--offline",), ("--revision", "main"), ("--hub-cache", "cache")])
def test_options_for_the_hub_are_not_for_a_directory(
    make_checkpoint: MakeCheckpoint, tmp_path: Path, options: tuple[str, ...]
) -> None:
    checkpoint = make_checkpoint()
    code, _, error = run("export", checkpoint, "-o", tmp_path / "artifact", *options)
    assert code == 2
    assert f"are not for {checkpoint}, which is on this machine. Leave them out." in error
