"""Engines are found again only where they fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.plugins.hosts.tensorrt.build import PLUGIN_ABI
from lucid_deploy.runtimes.tensorrt.manifest import MANIFEST, open_engines
from tests.runtimes.tensorrt.engine_copies import copy_of

trt = pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')

Exported = Callable[..., tuple[Path, Artifact]]


def change_manifest(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    for key, value in changes.items():
        target, *rest = key.split("__")
        (data[target] if rest else data)[rest[0] if rest else target] = value
    (folder / MANIFEST).write_text(json.dumps(data))


def test_engines_of_another_version(damaged: tuple[Artifact, Path]) -> None:
    with pytest.raises(LucidError, match=r"built with tensorrt-rtx .* and 9\.9 is.*lucid-deploy build .*--overwrite"):
        open_engines(damaged[0], "tensorrt-rtx", "9.9")


def test_engines_of_another_plugin_abi(damaged: tuple[Artifact, Path]) -> None:
    change_manifest(damaged[1], plugin__abi=99)
    with pytest.raises(
        LucidError, match=rf"plugin ABI 99, and this version has {PLUGIN_ABI}\. Run: lucid-deploy plugin build"
    ):
        open_engines(damaged[0], "tensorrt-rtx", trt.__version__)


def test_engines_of_another_model(damaged: tuple[Artifact, Path], exported: Exported, tmp_path: Path) -> None:
    other = copy_of(exported(cache="static")[1], tmp_path / "other")
    shutil.copytree(damaged[1].parent, other.directory / "engines")
    with pytest.raises(LucidError, match=r"another model: decode\.onnx, verify\.onnx differ.*lucid-deploy build"):
        open_engines(other, "tensorrt-rtx", trt.__version__)


@pytest.mark.parametrize("name", ["prefill.engine", "liblucid_tensorrt.so"])
def test_a_cut_file(damaged: tuple[Artifact, Path], name: str) -> None:
    path = damaged[1] / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckFailed, match=rf"{name} has \d+ bytes, its manifest says \d+: it was cut.*-deploy build"):
        open_engines(damaged[0], "tensorrt-rtx", trt.__version__)


def test_a_missing_file(damaged: tuple[Artifact, Path]) -> None:
    (damaged[1] / "decode.engine").unlink()
    with pytest.raises(CheckFailed, match=r"decode\.engine is missing\. Build them again"):
        open_engines(damaged[0], "tensorrt-rtx", trt.__version__)


def test_a_changed_plugin_library(damaged: tuple[Artifact, Path]) -> None:
    path = damaged[1] / "liblucid_tensorrt.so"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckFailed, match="was changed after the engines were built"):
        open_engines(damaged[0], "tensorrt-rtx", trt.__version__)


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1}', '{"format_version": 1, "engines": {}}'])
def test_a_damaged_manifest(damaged: tuple[Artifact, Path], text: str) -> None:
    (damaged[1] / MANIFEST).write_text(text)
    with pytest.raises(CheckFailed, match=r"engines\.json is damaged.*Build them again"):
        open_engines(damaged[0], "tensorrt-rtx", trt.__version__)


def test_a_manifest_that_names_files_elsewhere(damaged: tuple[Artifact, Path]) -> None:
    change_manifest(damaged[1], plugin__file="../../../plugin.so")
    with pytest.raises(CheckFailed, match="lies outside the folder"):
        open_engines(damaged[0], "tensorrt-rtx", trt.__version__)


def test_a_newer_manifest(damaged: tuple[Artifact, Path]) -> None:
    change_manifest(damaged[1], format_version=2)
    with pytest.raises(LucidError, match="has format 2, this lucid-deploy reads 1"):
        open_engines(damaged[0], "tensorrt-rtx", trt.__version__)


def test_no_engines(artifact: Artifact, damaged: tuple[Artifact, Path]) -> None:
    with pytest.raises(LucidError, match=r"has no engines for tensorrt-rtx\. Build them: lucid-deploy build"):
        open_engines(artifact, "tensorrt-rtx", trt.__version__)
    with pytest.raises(LucidError, match=r"has no engines for tensorrt \(there are some for tensorrt-rtx\)"):
        open_engines(damaged[0], "tensorrt", "11.0")
