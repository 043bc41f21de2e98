"""Files that no run reads: the tokenizer's are the checkpoint's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.checkpoint import resolve
from lucid_deploy.parity import VerifyOptions, verify_artifact
from lucid_deploy.parity.stored_files import check_copies
from tests.parity.faults import rehash

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
