"""Files from strangers: commands write, delete or copy nothing outside the paths that they were given."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError, spelled_out
from lucid_deploy.export.companions import check_links
from lucid_deploy.files import atomic_folders, atomic_write
from tests.conftest import MakeCheckpoint

Exported = Callable[..., tuple[Path, Any]]
PLANTED = ('{"../v/.ssh/authorized_keys": 0, "authorized_keys": 0}', "authorized_keys")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with what looks like leftovers of killed commands, which earlier versions cleaned and restored.

    The folder is also TMPDIR.
    """
    folder = tmp_path / "repo"
    for name in (".x.aaaaaaaa.lucid.old", ".x.aaaaaaaa.lucid.partial", "out.old-12345678", "out.tmp-12345678"):
        (folder / name).mkdir(parents=True)
        (folder / name / ".lucid.together").write_text(PLANTED[0])
        (folder / name / PLANTED[1]).write_text("ssh-rsa stranger")
    (tmp_path / "v" / ".ssh").mkdir(parents=True)
    (folder / "out.tmp-87654321").symlink_to(tmp_path / "v")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_planted_leftovers_are_neither_deleted_nor_restored(hostile: Path, make_checkpoint: MakeCheckpoint) -> None:
    before = tree(hostile.parent)
    checkpoint = make_checkpoint()
    assert run("export", checkpoint, "-o", hostile / "out").exit_code == 0
    assert run("export", checkpoint, "-o", hostile / "out", "--overwrite").exit_code == 0
    atomic_write(hostile / "x", b"")
    with atomic_folders(hostile / "x", hostile / "y"):
        pass
    after = tree(hostile.parent)
    assert {name: after.get(name) for name in before} == before
    assert not list((hostile.parent / "v" / ".ssh").iterdir())
    made = {name for name in after if Path(name).parent == hostile} - before.keys()
    assert {Path(name).name for name in made} - {f"torchinductor_{getpass.getuser()}"} == {"out", "x", "y"}


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "config.json", "generation_config.json"])
def test_a_link_out_of_the_checkpoint_is_refused(name: str, make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    checkpoint, secret = make_checkpoint(), tmp_path / "secret"
    secret.write_text("{}")
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(secret)
    result = run("export", checkpoint, "-o", tmp_path / "out")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert f"is a link to {secret}, outside the checkpoint" in result.stderr and result.stderr.count("\n") == 1


def test_links_within_a_checkpoint_and_the_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    model = tmp_path / "models--org--name"
    blobs, snapshot = model / "blobs", model / "snapshots" / "0123abcd"
    for folder in (blobs, snapshot, tmp_path / "models--org--other" / "blobs"):
        folder.mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (blobs / name[::-1]).write_text("{}")
        (snapshot / name).symlink_to(Path("../../blobs") / name[::-1])
    (snapshot / "vocab.json").symlink_to("tokenizer.json")
    check_links(snapshot)
    (tmp_path / "by_link").symlink_to(snapshot)
    check_links(tmp_path / "by_link")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("/dev/null")
    check_links(snapshot)  # weights may be anywhere
    other = tmp_path / "models--org--other" / "blobs" / "hash"
    other.write_text("{}")
    (snapshot / "merges.txt").symlink_to(other)
    with pytest.raises(LucidError, match="models--org--other/blobs/hash, outside the checkpoint"):
        check_links(snapshot)


def test_control_characters_of_a_manifest_do_not_reach_the_terminal(artifact_copy: Path) -> None:
    path = artifact_copy / "lucid.json"
    manifest = json.loads(path.read_text())
    manifest["notes"] = ["\x1b]0;stranger\x07\x9b2J \u202egnp.exe"]
    manifest["assumed_unused"] = {"\x1b[2J": 1}
    path.write_text(json.dumps(manifest))
    result = run("inspect", artifact_copy)
    assert result.exit_code == 0 and "stranger" in result.stdout
    assert not set(result.stdout) & set("\x1b\x07\x9b\u202e")
    manifest["format"] = "\x1b[2J"
    path.write_text(json.dumps(manifest))
    result = run("inspect", artifact_copy)
    assert result.exit_code == 2 and "\x1b" not in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(("old", "new"), [(b"input_ids", b"inp\xff\x85_ids"), (b"MatMul", b"Mat\xfful")])
def test_a_graph_with_names_that_are_not_utf8_gives_one_error_line(old: bytes, new: bytes, artifact_copy: Path) -> None:
    path = artifact_copy / "decode.onnx"
    path.write_bytes(path.read_bytes().replace(old, new))
    result = run("inspect", artifact_copy)
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output


@pytest.mark.parametrize("command", ["export", "verify"])
def test_without_torch_a_command_says_what_to_install(command: str, exported: Exported, tmp_path: Path) -> None:
    code = """
import sys
class WithoutTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, WithoutTorch())
from lucid_deploy.cli import main
main(sys.argv[1:])
"""
    arguments = {"export": ["demo", "-o", str(tmp_path / "out")], "verify": [str(exported()[1].directory)]}[command]
    done = subprocess.run([sys.executable, "-c", code, command, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "The package torch is needed to" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith(spelled_out('Run: pip install "lucid-deploy[export]"'))


def test_a_pipe_in_place_of_a_manifest_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lucid.json")
    result = run("inspect", tmp_path, "--json", tmp_path / "out" / "facts.json")
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    (tmp_path / "lucid.json").unlink()
    (tmp_path / "lucid.json").symlink_to("/dev/zero")
    assert "it has no lucid.json" in run("inspect", tmp_path).stderr
