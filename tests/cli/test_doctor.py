"""``lucid-deploy doctor``: what is missing is named with what to do, and is a failure only where exporting needs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from lucid_deploy.cli import main
from tests.patience import PATIENCE


def findings(**environment: str) -> dict[str, dict[str, Any]]:
    result = CliRunner().invoke(main, ["doctor", "--json", "-"], env=environment, catch_exceptions=False)
    assert result.exit_code == 0
    return {item["name"]: item for item in json.loads(result.stdout)}


def test_what_is_missing_says_what_to_do(tmp_path: Path) -> None:
    found = findings(CXX="no-such-compiler", TENSORRT_ROOT=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))
    assert found["C++ compiler"]["status"] == found["TensorRT headers"]["status"] == "missing"
    assert "(CXX=no-such-compiler). Install g++." in found["C++ compiler"]["remark"]
    assert f"TENSORRT_ROOT is {tmp_path}" in found["TensorRT headers"]["remark"]
    assert found["plugin library"]["status"] == "missing"
    assert found["plugin library"]["remark"].endswith("Run: lucid-deploy plugin build")


def test_doctor_passes_without_optional_packages(preloaded: Path) -> None:
    blocked = ("triton", "tensorrt", "tensorrt_rtx", "cuda", "kernel_lens")
    code = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\nfrom lucid_deploy.cli import main\nmain()"
    command = [preloaded / "python", "-c", code, "doctor"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    # Square brackets are not markup, and paths and commands are not cut off.
    assert 'pip install "tensorrt<12,>=10.14" "onnx-ir<2,>=0.1.16"' in " ".join(result.stdout.replace("│", " ").split())
    assert "…" not in result.stdout


def test_a_library_of_another_version_is_broken_or_missing_never_ok(tmp_path: Path) -> None:
    (tmp_path / "lucid-deploy").mkdir()
    (tmp_path / "lucid-deploy" / "liblucid_tensorrt.so").write_text("not a library")
    found = findings(XDG_CACHE_HOME=str(tmp_path))["plugin library"]
    assert found["status"] != "ok" and "is not a usable plugin library" in found["remark"]
