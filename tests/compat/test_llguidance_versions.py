"""Constrained answers with the oldest llguidance that pyproject allows; all other tests have the newest."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.compat.environments import packages_beside
from tests.patience import PATIENCE

pytestmark = pytest.mark.compat

ROOT = Path(__file__).resolve().parents[2]
OLDEST = "1.7.0"  # before, schemas and grammars had other interfaces
TESTS = ("generation/test_guide.py", "generation/test_constraint.py", "serving/test_tool_grammar.py")


def test_the_version_is_the_end_of_what_pyproject_allows() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["guided"] == [f"llguidance>={OLDEST.removesuffix('.0')},<2"]
    assert extras["guided"][0] in extras["serve"]


def test_constrained_answers_with_the_oldest_version() -> None:
    folder = packages_beside(f"llguidance=={OLDEST}")
    code = f"import llguidance; assert {str(folder)!r} in llguidance.__file__, llguidance.__file__"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    for command in (
        ["-c", code],
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in TESTS)],
    ):
        result = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
