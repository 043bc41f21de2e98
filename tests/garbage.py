"""A pytest plugin: what is there when all tests are collected stays, so nobody looks through it for garbage.

Python does so each time that enough is new: while the tests are imported, and while they run, with a million objects of
theirs, of PyTorch and of transformers to look through.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Iterator[None]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries in C++ complain of what is there at the very end


@pytest.fixture
def own_garbage() -> None:
    """For tests that collect garbage: they look through what they have made, not through what other tests left."""
    gc.freeze()
