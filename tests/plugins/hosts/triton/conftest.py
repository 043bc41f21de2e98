"""Processes that compile kernels begin with PyTorch imported, which the operators' packages import."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.plugins.hosts.triton import aot


@pytest.fixture(scope="session", autouse=True)
def _compilers_begin_with_pytorch() -> Iterator[None]:
    """They are forked from one process that has imported it, and nothing of Triton, which reads the environment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])

    def get_context(method: str) -> Any:
        assert method == "spawn", "a process that has compiled must not be forked"
        return context

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aot, "get_context", get_context)
        yield


@pytest.fixture(scope="module")
def _compiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    """Start a process that compiles, in which Triton and its compilers are imported once."""
    folder: Path = tmp_path_factory.mktemp("triton")
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(1, context, aot.start_compiler, (str(folder),)) as pool:
        yield pool


@pytest.fixture
def one_compiler(_compiler: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the models choose in this module is compiled by the same process."""
    monkeypatch.setattr(aot, "compilers", lambda _: contextlib.nullcontext(_compiler))
