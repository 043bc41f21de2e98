"""A smoke test of the development tools: they import without a GPU, and one compiled kernel runs on the CPU."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason='the tools need Triton: pip install -e ".[kernels]"')

from tests.patience import PATIENCE
from tests.plugins.decode_attention.kernel_runs import run_decode
from tests.plugins.kernel_cases import Case, within_gate
from tools.ptx.launcher import Launcher, ptx_compiler, run_compiled

ROOT = Path(__file__).resolve().parents[2]


def test_every_tool_imports() -> None:
    paths = [path for path in (ROOT / "tools").rglob("*.py") if not path.name.startswith(("test_", "conftest"))]
    for path in paths:
        importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def test_compiled_decoding_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(new=1, past=65, dtype="float16", keys=0.99, heads=1, arch=86)
    with ptx_compiler() as compiler:
        launcher = run_compiled(Launcher(compiler, 86), monkeypatch)
        result = run_decode(case)
    assert len(launcher.launched) == 2
    assert within_gate(result["error"], result["plain"], case.dtype), result


def test_gpu_check_without_a_gpu_is_one_clear_error(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.gpu.gpu_check", "--output", str(tmp_path / "results")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=PATIENCE)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("gpu-check needs an NVIDIA GPU") and result.stderr.count("\n") == 1
    assert not (tmp_path / "results").exists()
