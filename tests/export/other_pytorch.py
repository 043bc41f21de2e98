"""A PyTorch, or another package, in which something inside is not where it is now."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest


def hide(monkeypatch: pytest.MonkeyPatch, module: str, name: str | None) -> None:
    """Let a module have no such name until the test ends, or be missing itself, for who asks importlib for it."""
    import_module = importlib.import_module

    def without(asked: str) -> Any:
        if asked != module:
            return import_module(asked)
        if name is None:
            raise ImportError(asked)
        return SimpleNamespace(**{key: value for key, value in vars(import_module(asked)).items() if key != name})

    monkeypatch.setattr(importlib, "import_module", without)
