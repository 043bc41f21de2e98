"""The version: one, and read without importing anything heavy."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import lucid_deploy
from lucid_deploy.version import __version__

ROOT = Path(__file__).resolve().parents[1]


def test_the_package_and_the_api_have_this_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", __version__)
    assert lucid_deploy.__version__ == __version__


def test_the_build_reads_it_from_a_module_that_imports_nothing() -> None:
    assert 'version = { attr = "lucid_deploy.version.__version__" }' in (ROOT / "pyproject.toml").read_text()
    tree = ast.parse((ROOT / "lucid_deploy" / "version.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, (ast.Import, ast.ImportFrom))]
