"""The bundled model, exported and run with the lowest versions of packages that pyproject allows.

All other tests have the newest. PyTorch, several gigabytes, stays the one that is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lucid_deploy.artifact import Artifact
from tests.compat.environments import packages_beside
from tests.patience import PATIENCE

pytestmark = pytest.mark.compat

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [Requirement(line) for line in PROJECT["dependencies"] + EXTRAS["cpu"] + EXTRAS["export"]]
PROMPT = "fox has red lamp, owl has blue cup. owl has"


def lowest(requirement: Requirement) -> str:
    [version] = [each.version for each in requirement.specifier if each.operator == ">="]
    return f"{requirement.name}=={version}"


@pytest.fixture(scope="module")
def folder() -> Path:
    return packages_beside(*(lowest(each) for each in DECLARED if each.name != "torch"))


def wanted(distribution: Distribution) -> Iterator[Requirement]:
    """What a distribution needs here, without its extras."""
    for line in distribution.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def test_the_versions_are_the_lowest_and_fit_together(folder: Path) -> None:
    found = list(distributions(path=[str(folder)]))
    versions = {canonicalize_name(each.metadata["Name"]): each.version for each in found}
    for requirement in map(Requirement, (lowest(each) for each in DECLARED if each.name != "torch")):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)])
    refused = [
        f"{each.metadata['Name']} {each.version} needs {requirement}, not {versions[name]}"
        for each in found
        for requirement in wanted(each)
        if (name := canonicalize_name(requirement.name)) in versions
        and not requirement.specifier.contains(versions[name])
    ]
    assert not refused


def test_the_bundled_model_is_exported_verified_and_run(folder: Path, tmp_path: Path) -> None:
    given = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)}

    def python(*words: str) -> str:
        command = [sys.executable, *words]
        result = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        return result.stdout

    def lucid(*words: str) -> str:
        return python("-m", "lucid_deploy.cli", *words)

    hub = "huggingface_hub, safetensors, tokenizers, transformers"
    modules = f"numpy, onnx, onnx_ir, onnxscript, click, msgspec, jinja2, {hub}"
    code = f"import {modules}, onnxruntime as last; print(*(each.__file__ for each in ({modules}, last)), sep='\\n')"
    assert all(Path(line).is_relative_to(folder) for line in python("-c", code).splitlines())
    options = ("--quantize", "int4", "--cache-dtype", "int8")  # more of each package than plain float32 asks for
    facts = json.loads(lucid("export", "demo", "--output", "artifact", "--json", *options))
    assert facts["artifact"] == "artifact"
    assert json.loads(lucid("verify", "artifact", "--quick", "--json"))["passed"]
    assert json.loads(lucid("run", "artifact", "--prompt", PROMPT, "--json"))["text"].strip() == "blue cup"


def test_a_damaged_manifest_is_one_line(folder: Path, demo: Callable[..., Artifact], tmp_path: Path) -> None:
    artifact = shutil.copytree(demo().directory, tmp_path / "artifact")
    manifest = (artifact / "lucid.json").read_text().replace('"cache_dtype": "float32"', '"cache_dtype": "int3"')
    (artifact / "lucid.json").write_text(manifest)
    command = [sys.executable, "-m", "lucid_deploy.cli", "inspect", str(artifact)]
    given = {**os.environ, "PYTHONPATH": str(folder)}
    result = subprocess.run(command, env=given, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 2 and "is damaged" in result.stderr and result.stderr.count("\n") == 1, result.stderr
