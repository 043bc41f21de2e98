"""Which module of the product imports which, read from the syntax trees: imports inside functions count too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "lucid_deploy"
FOLDERS = {
    "lucid_deploy": "lucid_deploy",
    "conformance": "lucid_deploy.conformance",
    "export": "lucid_deploy.export",
    "plugins": "lucid_deploy.plugins",
}
# Lowest first: a package imports only from those before it. docs/architecture.md shows the same order.
ORDER = (
    "errors",
    "version",
    "files",
    "json_fields",
    "bounded_process",
    "plug",
    "ort",
    "processors",
    "demo",
    "cache",
    "plugins",
    "model",
    "artifact",
    "export",
    "runtimes",
    "generation",
    "batching",
    "parity",
    "evaluation",
    "serving",
    "packaging",
    "conformance",
    "bench",
    "doctor",
    "api",
    "cli",
)


class Import(NamedTuple):
    """One import statement: the module it stands in, the line, and the module it asks for."""

    module: str
    line: int
    wanted: str
    for_types: bool


def modules() -> dict[str, Path]:
    """Return every module of the product by its full name."""
    found = {}
    for folder, name in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((name, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


def imports(known: dict[str, Path]) -> Iterator[Import]:
    """Yield every import of a module of the product."""
    for module, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        types = {id(node) for block in ast.walk(tree) if _is_for_types(block) for node in ast.walk(block)}
        for node in ast.walk(tree):
            for wanted in _wanted(node, known):
                yield Import(module, node.lineno, wanted, id(node) in types)


def _wanted(node: ast.AST, known: dict[str, Path]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name in known]
    if isinstance(node, ast.ImportFrom) and node.module in known:
        assert not node.level, "imports are absolute"
        return [name if (name := f"{node.module}.{alias.name}") in known else node.module for alias in node.names]
    return []


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def package(module: str) -> str:
    """Return the part of the product that a module belongs to, one of :data:`ORDER`; empty for the root."""
    return module.removeprefix(PACKAGE).lstrip(".").split(".")[0]


def circles(edges: set[tuple[str, str]]) -> list[list[str]]:
    """Return the groups of modules that reach each other (Tarjan's strongly connected components)."""
    graph: dict[str, list[str]] = {}
    for source, target in sorted(edges):
        graph.setdefault(source, []).append(target)
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found
