"""The wheel with compiled kernels, in an environment of its own without a compiler: ``run`` uses the fast kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from tests.compat.environments import python_with
from tests.patience import PATIENCE

pytestmark = pytest.mark.compat
ROOT = Path(__file__).resolve().parents[2]
# What run needs of the dependencies; torch, which it never imports, is left out for its size.
NEEDED = (
    "onnxruntime==1.32.0",
    "onnx",
    "click",
    "huggingface_hub",
    "msgspec",
    "jinja2",
    "packaging",
    "rich",
    "tokenizers",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with the sdist and the wheel, without the TensorRT plugin, whose kernels take many minutes."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, ROOT / ".ci" / "build_wheel.py", "--cpu-only", "--output", folder]
    made = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.count("PASSED") == 2, "twine check"
    return folder


def test_the_wheel_is_for_a_platform_and_holds_the_library(built: Path) -> None:
    [wheel], [archive] = built.glob("*.whl"), built.glob("*.tar.gz")
    assert re.search(r"-py3-none-manylinux_2_\d+_\w+\.whl$", wheel.name) and archive.stat().st_size > 10**6
    names = zipfile.ZipFile(wheel).namelist()
    prebuilt = [Path(name).name for name in names if "prebuilt" in name and not name.endswith(".py")]
    assert sorted(prebuilt) == ["liblucid_onnxruntime.so", "liblucid_onnxruntime.so.json"]
    assert wheel.stat().st_size < 8 * 2**20


def test_run_uses_the_fast_kernels_where_there_is_no_compiler(
    built: Path, exported: Callable[..., tuple[Path, Artifact]], tmp_path: Path
) -> None:
    python, site = python_with(*NEEDED), tmp_path / "site"
    [wheel] = built.glob("*.whl")
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel]
    subprocess.run(install, check=True, stdout=sys.stderr)
    (tmp_path / "empty").mkdir()
    given = {"PATH": str(tmp_path / "empty"), "HOME": str(tmp_path), "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    given |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}

    def lucid(*words: object) -> str:
        command = [python, "-m", "lucid_deploy.cli", *map(str, words)]
        result = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    artifact = exported()[1].directory
    facts = json.loads(lucid("inspect", artifact, "--json"))
    kernels = facts["kernels"]
    assert kernels["auto"] == "library" and kernels["instructions"] in ("avx512", "avx2", "portable")
    assert (
        Path(kernels["library"]) == site / "lucid_deploy" / "plugins" / "hosts" / "prebuilt" / "liblucid_onnxruntime.so"
    )
    prompt = ["--prompt-ids", "5,6,7,5,6,7", "--max-new-tokens", "6", "--json"]
    fast, slow = (json.loads(lucid("run", artifact, *prompt, *words)) for words in ((), ("--kernels", "functions")))
    assert (fast["kernels"], slow["kernels"]) == ("library", "functions")
    assert fast["ids"] == slow["ids"] and len(fast["ids"]) > 0
