"""Tests use what callers use: a name that begins with an underscore may change without a test that notices."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
OURS = ("lucid_deploy", "export", "plugins", "benchmarks")
OF_PYTHON = {"_asdict", "_fields", "_replace", "_make", "_exit"}
PATCHES = {"setattr", "getattr", "delattr", "hasattr"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in OF_PYTHON


def private_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield lines and private names of the product: imported, read from an object, or patched by their names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
            # A module such as cli/_console.py is its package's own, and so are its tests.
            yield from ((node.lineno, alias.name) for alias in node.names if is_private(alias.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            source = node.value.func if isinstance(node.value, ast.Call) else node.value
            if getattr(source, "id", "") not in ("self", "cls", "super"):
                yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for argument in node.args[:2] if called in PATCHES else ():
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    last = argument.value.split(".")[-1]
                    yield from [(node.lineno, last)] if is_private(last) else []


def defined_in(tree: ast.AST) -> Iterator[str]:
    """Yield the names that code defines: of functions and classes, of variables, and of its objects' attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr if isinstance(node, ast.Attribute) else node.id


def names_of(paths: Iterable[Path]) -> set[str]:
    return {name for path in paths for name in defined_in(ast.parse(path.read_text()))}


def test_no_test_reaches_for_a_private_name() -> None:
    """Names of other packages are theirs, and those of what a folder of tests defines are its own."""
    ours = names_of(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))
    found = []
    for path in sorted(TESTS.rglob("*.py")):
        private = {(line, name) for line, name in private_names(ast.parse(path.read_text())) if name in ours}
        own = names_of(path.parent.glob("*.py")) if private else set()
        found += [f"{path.relative_to(TESTS)}:{line} {name}" for line, name in sorted(private) if name not in own]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "from lucid_deploy.batching.rows import _GRAIN",
        "rows._mask.shape",
        'monkeypatch.setattr(build, "_build", None)',
        'monkeypatch.setattr("lucid_deploy.runtimes.session.Session._load", None)',
        "session._model.eval()",
    ],
)
def test_the_search_finds(line: str) -> None:
    assert list(private_names(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "from lucid_deploy.cli._console import write_json",
        "self._done = 3",
        "super()._run_decode(ids)",
        "point._replace(x=1)",
        "value.__dict__",
        'monkeypatch.setattr(build, "build_engine", None)',
    ],
)
def test_the_search_leaves_alone(line: str) -> None:
    assert not list(private_names(ast.parse(line)))
