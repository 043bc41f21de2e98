"""A process in which Triton interprets kernels on the CPU; see ``kernel_worker``."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.pool import Pool
from typing import Any

import pytest

from tests.patience import PATIENCE


@pytest.fixture(scope="session")
def interpreter_pool() -> Iterator[Pool]:
    pytest.importorskip("triton", reason='the kernel tests need Triton: pip install -e ".[kernels]"')
    from tests.kernels import kernel_worker

    pool = multiprocessing.get_context("spawn").Pool(2, initializer=kernel_worker.start)
    yield pool
    pool.terminate()
    pool.join()


@pytest.fixture
def interpret(interpreter_pool: Pool) -> Callable[..., Any]:
    """Call a function of ``kernel_worker`` in the interpreter's process."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        return interpreter_pool.apply_async(function, arguments).get(timeout=PATIENCE)

    return call
