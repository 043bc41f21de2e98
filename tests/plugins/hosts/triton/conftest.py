"""Processes that compile kernels begin with PyTorch imported, which the operators' packages import."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
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
