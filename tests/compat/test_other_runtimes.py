"""The exported graphs in runtimes beside Python's onnxruntime, each in its own environment, without this toolkit."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from tests.compat.environments import node_with, python_with
from tests.compat.test_onnxruntime_versions import ERROR, write_case
from tests.compat.tried import JAVASCRIPT, OPENVINO

pytestmark = pytest.mark.compat

HERE = Path(__file__).parent
Exported = Callable[..., tuple[Path, Artifact]]


def error_of(*command: object, cwd: Path | None = None) -> tuple[str, float]:
    """Run a script; return the version and the error that it prints."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, cwd=cwd)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    return found["version"], found["error"]


@pytest.mark.parametrize("cache", ["growing", "static"])
@pytest.mark.parametrize("version", OPENVINO)
def test_openvino_runs_inlined_graphs(exported: Exported, tmp_path: Path, version: str, cache: str) -> None:
    checkpoint, artifact = exported(inline=True, cache=cache, opset=23)
    write_case(checkpoint, tmp_path / "case.npz")
    python = python_with(f"openvino=={version}")
    found, error = error_of(python, HERE / "run_openvino.py", artifact.directory, tmp_path / "case.npz")
    assert found.startswith(version) and error <= ERROR


@pytest.mark.parametrize("inline", [False, True], ids=["functions", "inline"])
@pytest.mark.parametrize("package", JAVASCRIPT)
def test_javascript_packages_run_both_forms(exported: Exported, tmp_path: Path, package: str, inline: bool) -> None:
    assert shutil.which("node") and shutil.which("npm"), "Node is missing; Debian's package is nodejs"
    name, version = package.split("@")
    checkpoint, artifact = exported(inline=inline)
    write_case(checkpoint, tmp_path / "case.npz")
    with np.load(tmp_path / "case.npz") as given:
        case: dict[str, object] = {key: given[key].tolist() for key in ("ids", "chunks", "logits")}
        case["mask"] = given["mask"].astype(int).tolist()
    inputs = artifact.manifest.graphs["decode"].inputs
    case["cache"] = {item.name: [item.shape[1], item.shape[3]] for item in inputs if len(item.shape) == 4}
    (tmp_path / "case.json").write_text(json.dumps(case))
    folder = node_with(package)
    command = ["node", HERE / "run_graphs.cjs", name, artifact.directory, tmp_path / "case.json"]
    assert error_of(*command, cwd=folder) == (version, pytest.approx(0, abs=ERROR))
