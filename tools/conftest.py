"""Fixtures of the tools' tests: those of the operators' tests, and an emulator that runs compiled PTX on the CPU."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from lucid_deploy.plugins.hosts.triton import aot
from tests.plugins.conftest import interpret, interpreter_pool  # noqa: F401 (fixtures)
from tools.ptx.launcher import Compiler, Launcher, ptx_compiler, run_compiled


@pytest.fixture(scope="session")
def ptx() -> Iterator[Compiler]:
    """Yield a function that compiles variants in a process of its own, each variant once."""
    with ptx_compiler() as compiler:
        yield compiler


@pytest.fixture
def compiled(ptx: Compiler, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Launcher]:
    """Return a function that makes the kernels' launcher run code compiled for a GPU in the PTX emulator."""

    def use(arch: int, resident: int = 1, seed: int = 0) -> Launcher:
        return run_compiled(Launcher(ptx, arch, resident, seed), monkeypatch)

    return use


@pytest.fixture(scope="module")
def compiling_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    """Start a process that compiles kernels, in which Triton is imported once."""
    folder: Path = tmp_path_factory.mktemp("triton")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, aot.start_compiler, (str(folder),)) as pool:
        yield pool


@pytest.fixture
def one_compiler(compiling_process: ProcessPoolExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ``aot.compilers`` return one process for a test module, so that the module imports Triton once."""
    monkeypatch.setattr(aot, "compilers", lambda _: contextlib.nullcontext(compiling_process))
