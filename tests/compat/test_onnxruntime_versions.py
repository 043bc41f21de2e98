"""The exported graphs in the oldest and the newest onnxruntime that pyproject allows and in one between.

Each has an environment of its own, without this toolkit: what runs is a short script with numpy and onnxruntime.
"""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.compat.environments import python_with
from tests.compat.tried import BETWEEN, NEWEST, OLDEST, STATIC_FROM

pytestmark = pytest.mark.compat

ROOT = Path(__file__).resolve().parents[2]
LEVELS = ("DISABLE_ALL", "ENABLE_ALL")
ERROR = 1e-4  # relative, of a step's logits in float32; plain rounding gives some 1e-6
CHUNKS = (7, 1, 30)

Exported = Callable[..., tuple[Path, Artifact]]


def write_case(checkpoint: Path, path: Path) -> None:
    """Write tokens, padding, chunks, and the logits of the float64 model with dense formulas."""
    exact = TorchSession(load_model(checkpoint, torch.float64, implementation="reference"))
    rng = np.random.default_rng(3)
    ids = rng.choice(rng.integers(0, 97, 9), (2, 60))  # repeated tokens: their keys resemble each other
    mask = np.ones(ids.shape, bool)
    mask[1, :5] = False
    cache, start, logits = exact.empty_cache(2), 0, []
    for size in CHUNKS:
        logits.append(exact.prefill(ids[:, start : start + size], cache, mask[:, start : start + size]))
        start += size
    for column in range(start, ids.shape[1]):
        logits.append(exact.decode(ids[:, column : column + 1], cache))
    np.savez(path, ids=ids, mask=mask, chunks=CHUNKS, logits=np.concatenate(logits, axis=1))


def run(version: str, artifact: Artifact, case: Path, level: str) -> subprocess.CompletedProcess[str]:
    """Run the case in one version."""
    script = Path(__file__).with_name("run_graphs.py")
    command = [python_with(f"onnxruntime=={version}"), script, artifact.directory, case, level]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


def test_the_versions_are_the_ends_of_what_pyproject_allows():
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["cpu"]
    assert extra == [f"onnxruntime>={OLDEST},<2"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("cache", ["growing", "static"])
@pytest.mark.parametrize("version", [OLDEST, BETWEEN, NEWEST])
def test_logits_are_those_of_float64(exported: Exported, tmp_path: Path, version: str, cache: str, level: str):
    checkpoint, artifact = exported(cache=cache)
    write_case(checkpoint, tmp_path / "case.npz")
    result = run(version, artifact, tmp_path / "case.npz", level)
    if cache == "static" and tuple(map(int, version.split("."))) < tuple(map(int, STATIC_FROM.split("."))):
        assert result.returncode != 0 and re.search("TensorScatter|opset", result.stderr), result.stderr
        return
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["version"] == version and found["error"] <= ERROR, found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("version", [OLDEST, BETWEEN, NEWEST])
def test_static_caches_of_opset_23_run_in_all_versions(exported: Exported, tmp_path: Path, version: str, level: str):
    checkpoint, artifact = exported(cache="static", opset=23)
    write_case(checkpoint, tmp_path / "case.npz")
    result = run(version, artifact, tmp_path / "case.npz", level)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["version"] == version and found["error"] <= ERROR, found


@pytest.mark.parametrize("version", [OLDEST, BETWEEN, NEWEST])
def test_inlined_graphs_run_in_all_versions(exported: Exported, tmp_path: Path, version: str):
    checkpoint, artifact = exported(inline=True)
    write_case(checkpoint, tmp_path / "case.npz")
    result = run(version, artifact, tmp_path / "case.npz", "ENABLE_ALL")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["error"] <= ERROR
