"""A fixture that records the graphs which onnxruntime loads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnx
import onnxruntime
import pytest

from tests.runtimes.passes.loaded_graphs import operators


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
