"""The TensorRT plugin library with stand-ins for kernels, built once for all tests: building an engine runs none."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from lucid_deploy.plugins.hosts.tensorrt.build import build_plugin
from lucid_deploy.plugins.hosts.triton.aot import variants
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Return the library, built once for all workers of a test run."""
    root = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        root = root.parent
    library = root / "stand_in_plugin.so"
    with open(root / "plugin.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if library.is_file():
            return library
        kernels = [
            CompiledKernel(each.name, 86, is_ptx, each.kernel, 1000, each.num_warps, dict(each.constants), [], b"none")
            for is_ptx in (False, True)
            for each in variants(89)  # those that read E4M3 among them
        ]
        return build_plugin(library, kernels)
