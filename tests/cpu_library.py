"""The library of CPU kernels for onnxruntime, built once for all tests."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from lucid_deploy.plugins.hosts.onnxruntime.build import build_ort_library, user_ort_library


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Return the library for onnxruntime, built once for all workers of a test run."""
    root = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        root = root.parent
    with open(root / "library.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return build_ort_library(root / "lucid-deploy" / user_ort_library().name)[0]


@pytest.fixture
def built_library(cpu_library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the built library the one that sessions find."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cpu_library.parent.parent))
    return cpu_library
