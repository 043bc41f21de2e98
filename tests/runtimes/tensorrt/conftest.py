from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from tests.runtimes.tensorrt.engine_copies import SMALL, copy_of

if TYPE_CHECKING:
    from lucid_deploy.runtimes.tensorrt.build import BuildReport

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture
def artifact(exported: Exported, tmp_path: Path) -> Artifact:
    return copy_of(exported()[1], tmp_path / "artifact")


@pytest.fixture(scope="session")
def built_engines(
    exported: Exported, plugin: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Artifact, BuildReport, list[tuple[str, int, int]]]:
    """An artifact with engines, the report, and the progress; do not change the files."""
    pytest.importorskip("tensorrt_rtx", reason='building engines needs TensorRT-RTX: pip install -e ".[rtx]"')
    from lucid_deploy.runtimes.tensorrt.build import BuildOptions, build_engines

    artifact = copy_of(exported()[1], tmp_path_factory.mktemp("built") / "artifact")
    calls: list[tuple[str, int, int]] = []
    report = build_engines(artifact, BuildOptions(plugin=plugin, **SMALL), lambda *call: calls.append(call))
    return artifact, report, calls


@pytest.fixture
def damaged(built_engines: Any, tmp_path: Path) -> tuple[Artifact, Path]:
    """A copy with engines that a test may damage, and the engines' folder."""
    directory = shutil.copytree(built_engines[0].directory, tmp_path / "damaged")
    return open_artifact(directory), directory / "engines" / "tensorrt-rtx"
