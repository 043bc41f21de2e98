from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.plugins.hosts.tensorrt.build import build_plugin
from lucid_deploy.plugins.hosts.triton.aot import variants
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel
from tests.runtimes.tensorrt.engine_copies import SMALL, copy_of

if TYPE_CHECKING:
    from lucid_deploy.runtimes.tensorrt.build import BuildReport

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture(scope="session")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the plugin library with stand-ins for kernels: building an engine runs none of them."""
    kernels = [
        CompiledKernel(each.name, 80, False, each.kernel, 1000, each.num_warps, dict(each.constants), [], b"stand-in")
        for each in variants(80)
    ]
    return build_plugin(tmp_path_factory.mktemp("plugin") / "plugin.so", kernels)


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
