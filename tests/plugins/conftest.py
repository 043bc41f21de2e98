"""Processes in which Triton interprets kernels on the CPU (see ``interpreter``), and the library of CPU kernels."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.plugins.hosts.onnxruntime.build import kernels_name
from tests.patience import PATIENCE
from tests.plugins import interpreter


@contextlib.contextmanager
def started() -> Iterator[Pool]:
    """Start a process that interprets kernels."""
    pytest.importorskip("triton", reason='the kernel tests need Triton: pip install -e ".[kernels]"')
    pool = multiprocessing.get_context("spawn").Pool(1, initializer=interpreter.start)
    yield pool
    pool.terminate()
    pool.join()


@pytest.fixture(scope="session")
def interpreter_pool() -> Iterator[Pool]:
    with started() as pool:
        yield pool


@pytest.fixture
def second_pool() -> Iterator[Pool]:
    """A second process, for kernels that run at the same time."""
    with started() as pool:
        yield pool


@pytest.fixture
def interpret(interpreter_pool: Pool) -> Callable[..., Any]:
    """Call a function of a module in an interpreter's process."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return interpreter_pool.apply_async(function, arguments).get(timeout=PATIENCE)

    return call


@pytest.fixture(scope="session")
def library(cpu_library: Path) -> Path:
    """Return the library of CPU kernels."""
    return cpu_library


@pytest.fixture
def fastest(library: Path):
    """Return the kernels that the library chose, and select them again after the test."""
    name = kernels_name(library)
    yield name
    kernels_name(library, name)
