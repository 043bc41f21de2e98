"""What is imported when, and what happens without the optional packages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lucid_deploy.artifact import Artifact
from tests.patience import PATIENCE

Exported = Callable[..., tuple[Path, Artifact]]

BLOCK = """
import sys
for name in ("onnxruntime", "openvino", "triton", "tensorrt", "tensorrt_rtx", "matplotlib", "polygraphy", "cuda"):
    sys.modules[name] = None
for name in ("starlette", "uvicorn", "prometheus_client", "ray", "lm_eval", "llguidance"):
    sys.modules[name] = None
"""
# This module has a subclass of a class of lm_eval.
NEED_OTHERS = ("lucid_deploy.evaluation.lm_eval_adapter",)
# plugins/*/kernel.py, their parts, and what they are compared with: written in Triton, imported to run or compile them
IN_TRITON = (".kernel", ".tile", ".parts", ".parts_float8", ".int8_part", ".powers")
# The modules of the server that speak HTTP or Ray.
SPEAK = (
    "app",
    "connections",
    "front",
    "metrics",
    "ray_",
    "server",
)
NEED_SERVE = tuple(f"lucid_deploy.serving.{name}" for name in SPEAK)


def python(code: str, *arguments: Any, program: Path | str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = [str(program), "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)


def test_every_module_imports_without_optional_packages(preloaded: Path) -> None:
    code = f"""{BLOCK}
import importlib, json, pkgutil
names, failed = [], {{}}
for package in ("lucid_deploy", "lucid_deploy.export", "lucid_deploy.plugins"):
    found = importlib.import_module(package)
    names += [package, *(item.name for item in pkgutil.walk_packages(found.__path__, package + "."))]
names = [name for name in names if not name.startswith({NEED_OTHERS + NEED_SERVE!r})]
names = [name for name in names if not name.endswith({(".__main__", *IN_TRITON)!r})]
for name in names:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failed[name] = str(error)
print(json.dumps([names, failed]))
"""
    result = python(code, program=preloaded / "python")
    assert result.returncode == 0, result.stderr
    names, failed = json.loads(result.stdout)
    assert {"lucid_deploy.runtimes.onnxruntime.session", "lucid_deploy.export.trace", "lucid_deploy.cli.run"} <= set(
        names
    )
    assert failed == {}


def test_run_without_onnxruntime_says_which_extra_to_install(exported: Exported) -> None:
    _, artifact = exported()
    code = f"{BLOCK}\nfrom lucid_deploy.cli import main\nmain()"
    result = python(code, "run", artifact.directory, "--prompt-ids", "5")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "Error: The package onnxruntime is needed to run an exported artifact and is not installed. "
        'Run: pip install "onnxruntime<2,>=1.23.1"\n'
    )


def test_running_with_onnxruntime_imports_no_torch(exported: Exported) -> None:
    _, artifact = exported()
    code = """
import sys
from lucid_deploy.cli import main
main(sys.argv[1:], standalone_mode=False)
print([name for name in ("torch", "onnxscript", "lucid_deploy.plugins.precondition") if name in sys.modules])
"""
    result = python(code, "run", artifact.directory, "--prompt-ids", "5", "-n", "3", "--ignore-eos")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
