"""Each line of the threat model names tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/security.md").read_text()
HELD, _, OPEN = PAGE.partition("## What is not protected")
LINES = re.split(r"^- ", HELD, flags=re.M)[1:]


@cache
def names_in(path: str) -> set[str]:
    return {node.name for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:40])
def test_a_line_names_tests_that_exist(line: str) -> None:
    said, _, named = line.partition("Test:")
    found = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", named)
    assert found and said.strip().endswith(".")
    for path, name in found:
        assert name.startswith("test_") and name in names_in(path), f"{path}::{name}"


def test_there_are_lines_and_what_is_open_is_said() -> None:
    assert len(LINES) > 25
    assert OPEN.count("\n- **") >= 5
