"""A missing package fails the run in continuous integration and is a skip elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("ci", "reason", "status"),
    [("1", "needs: pip install x", 1), ("1", "no GPU here", 0), ("", "needs: pip install x", 0)],
)
def test_a_skip_for_want_of_a_package(tmp_path: Path, ci: str, reason: str, status: int):
    (tmp_path / "test_it.py").write_text(
        f"import pytest\n\ndef test_it():\n    pytest.skip({reason!r})\n\ndef test_other(): pass\n"
    )
    outer = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}  # of the outer run
    environment = {**outer, "CI": ci, "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.nothing_skipped",
        "-p",
        "no:cacheprovider",
        str(tmp_path),
    ]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == status, run.stdout
    assert ("test_it.py::test_it: Skipped: needs" in run.stdout) == bool(status)
