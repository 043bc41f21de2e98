"""An artifact whose files change under the one who uses it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import open_artifact
from lucid_deploy.artifact.watch import ArtifactWatch, unchanged
from lucid_deploy.errors import CheckFailed


def write_in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"x")
    os.utime(path)  # a coarse clock might not have moved on


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.rename(path)


def truncate(path: Path) -> None:
    os.truncate(path, 10)


@pytest.mark.parametrize("change", [write_in_place, replace, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["weights.bin", "lucid.json", "decode.onnx"])
def test_changes_are_noticed(change: Any, name: str, artifact_copy: Path) -> None:
    watch = ArtifactWatch(open_artifact(artifact_copy))
    watch.check()
    change(artifact_copy / name)
    with pytest.raises(CheckFailed, match=f"{name} changed while it was in use"):
        watch.check()


def test_what_is_no_change(artifact_copy: Path) -> None:
    watch = ArtifactWatch(open_artifact(artifact_copy))
    (artifact_copy / "more.txt").write_text("x")
    (artifact_copy / "weights.bin").chmod(0o444)
    os.link(artifact_copy / "weights.bin", artifact_copy / "linked")
    (artifact_copy / "weights.bin").read_bytes()
    watch.check()


def test_a_file_out_of_reach_is_a_change(artifact_copy: Path, tmp_path: Path) -> None:
    watch = ArtifactWatch(open_artifact(artifact_copy))
    artifact_copy.rename(tmp_path / "elsewhere")
    artifact_copy.write_bytes(b"")  # a file where the folder was: looking inside of it is an error of its own
    with pytest.raises(CheckFailed, match="changed while it was in use"):
        watch.check()


@pytest.mark.parametrize("when", ["not at all", "before", "in the block", "and the block failed"])
def test_what_is_made_of_an_artifact_that_is_replaced_is_refused(
    when: str, exported: Callable[..., Any], artifact_copy: Path, tmp_path: Path
) -> None:
    artifact, newer = open_artifact(artifact_copy), exported(hidden_size=96)[1].directory

    def replaced() -> None:
        artifact_copy.rename(tmp_path / "older")
        shutil.copytree(newer, artifact_copy)

    def work() -> None:
        with unchanged(artifact):
            if when in ("in the block", "and the block failed"):
                replaced()
            if when == "and the block failed":
                raise ValueError("cannot reshape array")

    if when == "not at all":
        work()
        return
    if when == "before":
        replaced()
    with pytest.raises(CheckFailed, match=r"changed while it was in use|was replaced while it was read\. Run the"):
        work()


def test_an_error_over_an_artifact_that_stays_is_that_error(artifact_copy: Path) -> None:
    with pytest.raises(ValueError, match="cannot reshape"), unchanged(open_artifact(artifact_copy)):
        raise ValueError("cannot reshape array")
