"""Imports inside the server point one way, those inside functions and those for type checkers included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lucid_deploy.serving

PACKAGE = "lucid_deploy.serving"
FOLDER = Path(lucid_deploy.serving.__file__).parent
# Each module may import those before it.
ORDER = [
    "errors",
    "jobs",
    "limits",
    "tool_bodies",
    "bodies",
    "responses_api",
    "tool_formats",
    "tool_grammar",
    "tool_parser",
    "tool_reader",
    "requests",
    "reader_process",
    "readers",
    "metrics",
    "security",
    "engine",
    "row_times",
    "backend",
    "answers",
    "tracing",
    "service",
    "openapi",
    "pages",
    "front",
    "answering",
    "solving",
    "app",
    "connections",
    "logs",
    "server",
    "loading",
    "prefix_routing",
    "ray_router",
    "ray_capacity",
    "ray_connection",
    "ray_start",
    "ray_cluster",
]


def imported(name: str) -> set[str]:
    """Return the modules of the package that a module imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write imports in full"
            names = [node.module or "", *(f"{node.module}.{item.name}" for item in node.names)]
        elif isinstance(node, ast.Import):
            names = [item.name for item in node.names]
        else:
            continue
        found |= {item.removeprefix(PACKAGE + ".") for item in names if item.startswith(PACKAGE + ".")}
    return {item.split(".")[0] for item in found}


def test_the_order_has_every_module() -> None:
    assert sorted(ORDER) == sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_one_way(name: str) -> None:
    before = set(ORDER[: ORDER.index(name)])
    assert imported(name) <= before, f"{name} imports what comes after it, or itself"


def test_nothing_below_the_server_knows_it() -> None:
    """Batching, generation and artifacts are used by others too."""
    root = FOLDER.parent
    for folder in ("generation", "batching", "artifact", "runtimes", "cache", "model"):
        for path in (root / folder).rglob("*.py"):
            assert PACKAGE not in path.read_text(), path
