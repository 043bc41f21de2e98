"""Every message in the troubleshooting page is one that the code can print."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
MESSAGES = re.findall(r"^- `([^`]+)`", PAGE, re.M)


FOLDERS = ("lucid_deploy", "conformance", "export", "plugins")


def constants() -> str:
    """Return all strings of the code; those split over lines or around names are pieces here as in the syntax tree."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


CODE = constants()


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 30


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_prints_it(message: str) -> None:
    for piece in message.split("…"):
        assert piece.strip(" :") in CODE
