from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from lucid_deploy.plugins.ort_build import build_ort_library, kernels_name


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Return the library for onnxruntime, built once for all workers of a test run."""
    root = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        root = root.parent
    with open(root / "library.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_ort_library(root / "lucid-deploy" / "liblucid_onnxruntime.so")[0]


@pytest.fixture
def fastest(library: Path):
    """Give back the kernels the library started with, after a test that chose others."""
    name = kernels_name(library)
    yield name
    kernels_name(library, name)


@pytest.fixture
def built_library(library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the built library the one that sessions find."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(library.parent.parent))
    return library
