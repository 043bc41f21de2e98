"""Files that no run reads: the tokenizer's are the checkpoint's, and genai_config.json is what export writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import CheckFailed
from lucid_deploy.export.genai import FILE
from lucid_deploy.model.checkpoint import resolve
from lucid_deploy.parity import VerifyOptions, verify_artifact
from lucid_deploy.parity.stored_files import check_copies, check_genai_settings
from tests.parity.faults import rehash

Exported = Callable[..., tuple[Path, Artifact]]
FILES = 3  # tokenizer.json, tokenizer_config.json, generation_config.json


@pytest.fixture
def copied(demo: Callable[..., Artifact], tmp_path: Path) -> Path:
    return shutil.copytree(demo().directory, tmp_path / "artifact")


def swap_words(directory: Path) -> None:
    path = directory / "tokenizer.json"
    data = json.loads(path.read_text())
    words = data["model"]["vocab"]
    words["red"], words["blue"] = words["blue"], words["red"]
    path.write_text(json.dumps(data))
    rehash(directory)


def test_copies_are_the_checkpoints(demo: Callable[..., Artifact]) -> None:
    assert check_copies(demo(), resolve("demo")) == FILES


def test_words_that_changed_places_fail_and_the_comparison_is_made(copied: Path) -> None:
    swap_words(copied)
    found = verify_artifact(open_artifact(copied), VerifyOptions(quick=True))
    outcomes = {check.name: check.outcome for check in found.checks}
    assert (outcomes["files"], outcomes["weights"], outcomes["tensors"]) == ("failed", "passed", "passed")
    assert not found.passed and f"{copied}: tokenizer.json is not what the checkpoint" in found.failure
    assert "--checkpoint" in found.failure and "\n" not in found.failure


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_any_of_them(name: str, copied: Path) -> None:
    path = copied / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 5}))
    rehash(copied)
    with pytest.raises(CheckFailed, match=name):
        check_copies(open_artifact(copied), resolve("demo"))


def test_files_that_only_one_has_are_left_out(demo: Callable[..., Artifact], tmp_path: Path) -> None:
    assert check_copies(demo(), tmp_path) == 0


# genai_config.json


def edit(directory: Path, change: Callable[[Any], object]) -> None:
    data = json.loads((directory / FILE).read_text())
    change(data)
    (directory / FILE).write_text(json.dumps(data))
    rehash(directory)


def test_what_export_writes_passes(demo: Callable[..., Artifact], exported: Exported) -> None:
    assert check_genai_settings(demo())
    assert not check_genai_settings(exported(cache="static")[1]), "genai knows no such cache"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["search"].update(do_sample=True), "search.do_sample is true, not false;"),
        (lambda data: data["model"].update(eos_token_id=[3]), "model.eos_token_id[0] is 3, not 2;"),
        (lambda data: data["model"]["decoder"].pop("head_size"), "model.decoder.head_size is absent, not 64;"),
        (lambda data: data["search"].update(chunk_size=4), "search.chunk_size is 4, not absent;"),
        (
            lambda data: data["model"]["decoder"]["pipeline"][1]["decode"].update(filename="prefill.onnx"),
            'model.decoder.pipeline[1].decode.filename is "prefill.onnx", not "decode.onnx";',
        ),
        (lambda data: data["search"].update(top_k=1, top_p=0.5), "search.top_k is 1, not 50, and 1 more;"),
    ],
    ids=range(6),
)
def test_the_key_is_named(change: Callable[[Any], object], message: str, copied: Path) -> None:
    edit(copied, change)
    with pytest.raises(CheckFailed) as raised:
        check_genai_settings(open_artifact(copied))
    assert f"{copied / FILE}: {message}" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_what_is_no_such_file(text: str, copied: Path) -> None:
    (copied / FILE).write_text(text)
    with pytest.raises(CheckFailed, match="genai_config"):
        check_genai_settings(open_artifact(copied))


def test_one_for_an_artifact_that_genai_cannot_run(exported: Exported, tmp_path: Path) -> None:
    copy = shutil.copytree(exported(cache="static")[1].directory, tmp_path / "artifact")
    (copy / FILE).write_text("{}")
    with pytest.raises(CheckFailed, match="onnxruntime-genai cannot run this artifact"):
        check_genai_settings(open_artifact(copy))
