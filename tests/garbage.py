"""A pytest plugin: objects that exist when all tests are collected are frozen, so that garbage collection skips them.

Python would look through these million objects of tests, PyTorch and transformers each time that enough new objects
exist: while the tests are imported, and while they run.
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
        atexit.register(gc.unfreeze)  # C++ libraries complain about objects left at the very end


@pytest.fixture
def own_garbage() -> None:
    """For tests that collect garbage: freeze what other tests left, so that only their own objects are searched."""
    gc.freeze()
