"""A stand-in for onnxruntime that has all providers, and an artifact that they may write into."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from tests.runtimes.onnxruntime.fake_onnxruntime import FakeOrt, copy_of, use_library

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeOrt:
    made = FakeOrt()
    monkeypatch.setitem(sys.modules, "onnxruntime", made)
    use_library(monkeypatch, tmp_path)
    return made


@pytest.fixture
def artifact(exported: Exported, tmp_path: Path) -> Artifact:
    """An artifact of the test's own: TensorRT providers write into it."""
    return copy_of(exported()[1], tmp_path)
