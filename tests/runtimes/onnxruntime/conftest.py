"""A stand-in for onnxruntime that has all providers, and an artifact that they may write into."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from lucid_deploy.artifact import Artifact
from tests.runtimes.onnxruntime.fake_onnxruntime import FakeOrt, copy_of, use_library
from tests.runtimes.onnxruntime.loaded_graphs import operators

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


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Counter[str]]:
    """A list to which each graph that onnxruntime loads adds its operators."""
    found: list[Counter[str]] = []
    opened = onnxruntime.InferenceSession.__init__

    def init(self: Any, model: Any, *arguments: Any, **options: Any) -> None:
        found.append(operators(onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)))
        opened(self, model, *arguments, **options)

    monkeypatch.setattr(onnxruntime.InferenceSession, "__init__", init)
    return found
