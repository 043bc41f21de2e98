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


def write_json_case(case: Path, artifact: Artifact, path: Path) -> None:
    """Write a case for JavaScript, with the shapes of a cache before the first token."""
    with np.load(case) as given:
        written: dict[str, object] = {key: given[key].tolist() for key in ("ids", "chunks", "logits")}
        written["mask"] = given["mask"].astype(int).tolist()
        batch = len(given["ids"])
    written["cache"] = {
        item.name: [batch if axis == "batch" else axis if isinstance(axis, int) else 0 for axis in item.shape]
        for item in artifact.manifest.graphs["prefill"].inputs
        if item.name.startswith("past_key_values.")
    }
    path.write_text(json.dumps(written))


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
    write_json_case(tmp_path / "case.npz", artifact, tmp_path / "case.json")
    folder = node_with(package)
    command = ["node", HERE / "run_graphs.cjs", name, artifact.directory, tmp_path / "case.json"]
    assert error_of(*command, cwd=folder) == (version, pytest.approx(0, abs=ERROR))
