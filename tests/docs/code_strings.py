"""The strings that code has, read from its syntax trees."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def strings(*folders: str) -> str:
    """Return all strings of the Python files below folders of the repository, a line each.

    Those split over lines or around names are pieces here as in the syntax tree.
    """
    return "\n".join(map(_strings_of, folders))


@functools.cache
def _strings_of(folder: str) -> str:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / folder).rglob("*.py")))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
