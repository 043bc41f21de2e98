"""The wheel with compiled kernels, in an environment of its own without a compiler: ``run`` uses the fast kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from tests.patience import PATIENCE

pytestmark = pytest.mark.compat
ROOT = Path(__file__).resolve().parents[2]


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


def test_without_pytorch_and_a_compiler_artifacts_run_with_the_fast_kernels(
    built: Path, exported: Callable[..., tuple[Path, Artifact]], tmp_path: Path
) -> None:
    environment = tmp_path / "environment"
    venv.create(environment)
    [wheel] = built.glob("*.whl")
    install = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", environment, f"{wheel}[cpu,serve]"]
    subprocess.run(install, check=True, stdout=sys.stderr)
    (tmp_path / "empty").mkdir()
    given = {"PATH": str(tmp_path / "empty"), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    given |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}

    def lucid(*words: object, status: int = 0) -> str:
        command = [environment / "bin" / "lucid-deploy", *map(str, words)]
        result = subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == status, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result.stderr if status else result.stdout

    artifact = exported()[1].directory
    lucid("doctor")
    facts = json.loads(lucid("inspect", artifact, "--json"))
    kernels = facts["kernels"]
    assert kernels["auto"] == "library" and kernels["instructions"] in ("avx512", "avx2", "portable")
    [site] = environment.glob("lib/python*/site-packages")
    assert not (site / "torch").exists()
    assert (
        Path(kernels["library"]) == site / "lucid_deploy" / "plugins" / "hosts" / "prebuilt" / "liblucid_onnxruntime.so"
    )
    prompt = ["--prompt-ids", "5,6,7,5,6,7", "--max-new-tokens", "6", "--json"]
    fast, slow = (json.loads(lucid("run", artifact, *prompt, *words)) for words in ((), ("--kernels", "functions")))
    assert (fast["kernels"], slow["kernels"]) == ("library", "functions")
    assert fast["ids"] == slow["ids"] and len(fast["ids"]) > 0
    lucid("bench", artifact, "--lengths", "64", "--repeats", "1")
    lucid("package", artifact, "--target", "triton", "--output", tmp_path / "repository")
    lucid("serve", "--help")
    for needs_torch in (
        ("export", "demo", "--output", "out"),
        ("verify", artifact),
        ("run", artifact, "--runtime", "torch", *prompt),
    ):
        assert "is not installed. Run: pip install" in lucid(*needs_torch, status=2)
