"""onnxruntime is imported in one place, with its telemetry off unless the user wants it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnxruntime
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.conformance.cases import write_cases
from lucid_deploy.ort import SWITCH, import_onnxruntime
from tests.architecture.imports import ROOT
from tests.patience import PATIENCE

Exported = Callable[..., tuple[Path, Artifact]]
# The second is a script for users without the toolkit.
IMPORTERS = {"lucid_deploy/ort.py", "conformance/run.py"}
FOLDERS = ("lucid_deploy", "export", "plugins", "conformance", "benchmarks", "examples", "tools")
KEPT = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "OMP_NUM_THREADS")  # variables of CI systems turn telemetry off
NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}


def kept_by(command: list[str], home: Path, **more: str) -> list[str]:
    """Run a program with a home and a working folder of its own; return what is in them afterwards."""
    home.mkdir()
    environment = {name: os.environ[name] for name in KEPT if name in os.environ} | NO_NETWORK
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), **more}
    result = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stderr
    return sorted(path.name for path in home.rglob("*") if path.is_file())


def test_a_command_leaves_no_identifier_and_no_events(exported: Exported, tmp_path: Path) -> None:
    artifact = exported()[1]
    command = [sys.executable, "-m", "lucid_deploy.cli", "run", str(artifact.directory), "--prompt-ids", "5", "-n", "2"]
    assert kept_by(command, tmp_path / "home") == []


def test_the_runner_of_conformance_cases_leaves_none_either(tmp_path: Path) -> None:
    write_cases(tmp_path / "cases", "decode_attention_past")
    command = [sys.executable, "-B", str(ROOT / "conformance" / "run.py"), "--cases", str(tmp_path / "cases")]
    assert kept_by(command, tmp_path / "home") == []


def test_a_user_who_wants_telemetry_has_it(tmp_path: Path) -> None:
    code = "import os; from lucid_deploy.ort import *; import_onnxruntime(); assert os.environ[SWITCH] == '0'"
    found = kept_by([sys.executable, "-c", code], tmp_path / "home", **{SWITCH: "0"})
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) >= (1, 29) and sys.platform == "linux":
        assert "onnxruntime.db" in found  # else the tests above prove nothing


@pytest.mark.parametrize("wanted, calls", [(None, 1), ("1", 1), ("TRUE", 1), ("0", 0), ("", 0)])
def test_telemetry_of_an_onnxruntime_imported_before_is_turned_off(
    wanted: str | None, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(SWITCH, raising=False) if wanted is None else monkeypatch.setenv(SWITCH, wanted)
    called: list[None] = []
    before = ModuleType("onnxruntime")
    vars(before)["disable_telemetry_events"] = lambda: called.append(None)
    monkeypatch.setitem(sys.modules, "onnxruntime", before)
    assert import_onnxruntime() is before
    assert len(called) == calls
    assert os.environ[SWITCH] == ("1" if wanted is None else wanted)


def imports_onnxruntime(path: Path) -> bool:
    """Whether a file imports onnxruntime, except for type checkers and, after our import, its submodules."""
    text = re.sub(r"^if TYPE_CHECKING:\n(?:(?: .*)?\n)*", "", path.read_text(encoding="utf-8"), flags=re.M)
    names = re.findall(r"^ *(?:import|from) (onnxruntime[\w.]*)(?!\w)", text, re.M)
    found = {name for name in names if name.split(".")[0] == "onnxruntime"}
    return bool(found) and ("onnxruntime" in found or "import_onnxruntime()" not in text)


def test_no_other_file_imports_onnxruntime() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    assert {path.relative_to(ROOT).as_posix() for path in files if imports_onnxruntime(path)} == IMPORTERS
