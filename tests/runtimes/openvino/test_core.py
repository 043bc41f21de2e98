"""OpenVINO's Core outlives every session, and with it the stack that it gives to signal handlers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT
from tests.patience import PATIENCE

pytest.importorskip("openvino", reason="the extra openvino")


@pytest.mark.parametrize("imported", ["import openvino", "from lucid_deploy.runtimes.openvino.core import *"])
def test_openvino_reports_nothing(imported: str, tmp_path: Path) -> None:
    """Its import alone sends an event, and keeps an identifier."""
    pytest.importorskip("openvino_telemetry")
    no_network = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ}
    ours = "core" in imported
    program = f"{imported}\n" + (
        "import_openvino().Core()\nimport sys; assert '_telemetry' not in str([*sys.modules])" if ours else ""
    )
    command = [sys.executable, "-c", program]
    environment = {**kept, **no_network, "HOME": str(tmp_path)}  # not CI's, where it keeps still
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert bool([*tmp_path.iterdir()]) != ours  # else the second case proves nothing


def test_nothing_else_imports_openvino() -> None:
    """But type checkers."""
    folders = ("lucid_deploy", "export", "plugins", "conformance", "benchmarks", "examples", "tools")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    said = {
        path.relative_to(ROOT).as_posix(): re.sub(
            r"if TYPE_CHECKING:\n(    .*\n|\n)+", "", path.read_text(encoding="utf-8")
        )
        for path in files
    }
    found = {name for name, text in said.items() if re.search(r"^ *(import|from) openvino\b", text, re.MULTILINE)}
    assert found == {"lucid_deploy/runtimes/openvino/core.py"}
