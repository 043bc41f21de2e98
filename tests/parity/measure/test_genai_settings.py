"""``genai_config.json`` is held to what export writes, by a comparison that names the key."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import MANIFEST, Artifact, open_artifact
from lucid_deploy.errors import CheckFailed
from lucid_deploy.export.genai import FILE
from lucid_deploy.parity import VerifyOptions, verify_artifact
from lucid_deploy.parity.measure.genai_settings import check_genai_settings
from lucid_deploy.version import __version__
from tests.parity.faults import rehash

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture
def copied(demo: Callable[..., Artifact], tmp_path: Path) -> Path:
    return shutil.copytree(demo().directory, tmp_path / "artifact")


def edit(directory: Path, change: Callable[[Any], object]) -> None:
    data = json.loads((directory / FILE).read_text())
    change(data)
    (directory / FILE).write_text(json.dumps(data))
    rehash(directory)


def test_what_export_writes_passes(demo: Callable[..., Artifact], exported: Exported) -> None:
    assert check_genai_settings(demo())
    assert not check_genai_settings(exported(cache="static")[1]), "genai knows no such cache"


def test_a_hybrids_passes(hybrid: Callable[..., Artifact]) -> None:
    assert check_genai_settings(hybrid()) == (hybrid().directory / FILE).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["search"].update(do_sample=True), "search.do_sample is true, not false;"),
        (lambda data: data["model"].update(eos_token_id=[3]), "model.eos_token_id[0] is 3, not 2;"),
        (lambda data: data["model"].update(eos_token_id=[2, 3]), "model.eos_token_id is [2, 3], not [2];"),
        (lambda data: data["model"]["decoder"].pop("head_size"), "model.decoder.head_size is absent, not 64;"),
        (lambda data: data["search"].update(chunk_size=4), "search.chunk_size is 4, not absent;"),
        (lambda data: data["search"].update(num_beams=True), "search.num_beams is true, not 1;"),
        (
            lambda data: data["model"]["decoder"]["pipeline"][1]["decode"].update(filename="prefill.onnx"),
            'model.decoder.pipeline[1].decode.filename is "prefill.onnx", not "decode.onnx";',
        ),
        (lambda data: data["search"].update(top_k=1, top_p=0.5), "search.top_k is 1, not 50, and 1 more;"),
    ],
    ids=range(8),
)
def test_the_key_is_named(change: Callable[[Any], object], message: str, copied: Path) -> None:
    edit(copied, change)
    with pytest.raises(CheckFailed) as raised:
        check_genai_settings(open_artifact(copied))
    assert f"{copied / FILE}: {message}" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (__version__, "run the model by it. Export the artifact again;"),
        ("0.0.7", f"lucid-deploy 0.0.7 exported it, and this is {__version__}. Export the artifact again;"),
        (None, f"lucid-deploy of another version exported it, and this is {__version__}. Export the artifact again;"),
    ],
)
def test_another_version_is_named(version: str | None, said: str, copied: Path) -> None:
    edit(copied, lambda data: data["search"].update(top_k=1))
    manifest = json.loads((copied / MANIFEST).read_text())
    manifest["versions"] = {"torch": "2.9"} if version is None else {"lucid-deploy": version}
    (copied / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckFailed) as raised:
        check_genai_settings(open_artifact(copied))
    assert str(raised.value).startswith(f"{copied / FILE}: search.top_k is 1, not 50;") and said in str(raised.value)


@pytest.mark.parametrize("text", ["{", "[]", '"\\ud800"', "[" * 100_000])
def test_what_is_no_such_file(text: str, copied: Path) -> None:
    (copied / FILE).write_text(text)
    with pytest.raises(CheckFailed, match="genai_config"):
        check_genai_settings(open_artifact(copied))


def test_one_for_an_artifact_that_genai_cannot_run(exported: Exported, tmp_path: Path) -> None:
    copy = shutil.copytree(exported(cache="static")[1].directory, tmp_path / "artifact")
    (copy / FILE).write_text("{}")
    with pytest.raises(CheckFailed, match="onnxruntime-genai cannot run this artifact"):
        check_genai_settings(open_artifact(copy))


def test_verify_fails_and_compares_all_the_same(copied: Path) -> None:
    edit(copied, lambda data: data["search"].update(do_sample=True))
    found = verify_artifact(open_artifact(copied), VerifyOptions(quick=True))
    outcomes = {check.name: check.outcome for check in found.checks}
    assert (outcomes["files"], outcomes["weights"], outcomes["tensors"]) == ("failed", "passed", "passed")
    assert not found.passed and "search.do_sample is true, not false" in found.failure
