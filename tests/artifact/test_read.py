"""Opening an artifact, and the checks of its files, from Python; the command line's are in bad_input."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lucid_deploy.artifact import Artifact, check_hashes, open_artifact
from lucid_deploy.artifact.read import ArtifactWatch, unchanged
from lucid_deploy.errors import CheckFailed, LucidError

Exported = Callable[..., tuple[Path, Artifact]]


def test_opening_returns_the_manifest_that_was_written(exported: Exported) -> None:
    _, artifact = exported()
    text = (artifact.directory / "lucid.json").read_text()
    assert artifact.manifest.to_json() == text
    assert open_artifact(str(artifact.directory)) == artifact


def test_every_file_but_the_manifest_is_listed(exported: Exported) -> None:
    _, artifact = exported()
    files = {path.name for path in artifact.directory.iterdir()}
    assert files - {"lucid.json"} == artifact.manifest.files.keys()


def test_all_files_that_differ_are_named(artifact_copy: Path) -> None:
    for name in ("weights.bin", "prefill.onnx"):
        path = artifact_copy / name
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    artifact = open_artifact(artifact_copy)
    with pytest.raises(CheckFailed, match=r"sha256 of prefill\.onnx, weights\.bin differs"):
        check_hashes(artifact)


def test_the_identity_is_that_of_model_type_and_weights(exported: Exported, tmp_path: Path) -> None:
    """A cache of one artifact can continue in another with the same identity, whatever else differs."""
    _, artifact = exported()
    identity = artifact.identity

    def changed(**fields: object) -> str:
        return Artifact(tmp_path, dataclasses.replace(artifact.manifest, **fields)).identity

    assert changed(cache="static", logits="all", source="elsewhere", versions={}) == identity
    config = dataclasses.replace(artifact.config, rope_theta=5e5)
    weights = {**artifact.manifest.files, "weights.bin": {"size": 1, "sha256": "0" * 64}}
    others = {changed(config=config), changed(dtype="float16"), changed(files=weights)}
    assert len({identity, *others}) == 4


def test_a_graph_is_read_once_and_its_weights_are_the_files(artifact_copy: Path) -> None:
    opened = open_artifact(artifact_copy)
    whole = onnx.load(str(opened.graph_path("decode")))  # reads the data itself
    model = opened.graph("decode")
    opened.graph_path("decode").unlink()
    assert opened.graph("decode") is model
    numbers = np.fromfile(opened.path("weights.bin"), np.float32)
    data = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in whole.graph.initializer}
    found = opened.weights("decode")
    assert len(found) > 10
    for weight in found:
        mine = numbers[weight.offset // 4 :][: weight.size // 4].reshape(weight.shape)
        np.testing.assert_array_equal(mine, data[weight.name])


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_file_that_opens_but_cannot_be_read_is_named(artifact_copy: Path) -> None:
    artifact, broken = open_artifact(artifact_copy), artifact_copy / "weights.bin"
    broken.unlink()
    broken.symlink_to("/proc/self/mem")  # reading from its start is an input/output error
    with pytest.raises(LucidError, match=rf"{broken} cannot be read: Input/output error"):
        check_hashes(artifact)


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


@pytest.mark.parametrize("when", ["not at all", "before", "in the block", "and the block failed"])
def test_work_on_an_artifact_that_is_replaced_meanwhile_fails(
    when: str, exported: Callable[..., Any], artifact_copy: Path, tmp_path: Path
) -> None:
    artifact, newer = open_artifact(artifact_copy), exported(attention_type="llama")[1].directory

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
