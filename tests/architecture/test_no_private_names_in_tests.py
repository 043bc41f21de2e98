"""No test reaches for a private name of the product, read from the syntax trees.

A class of the tests may override what it inherits, and call it. A private module (its file's name begins with an
underscore) is its folder's own: tests in the folder of the same path may import it.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.imports import PACKAGE, ROOT, modules

TESTS = sorted((ROOT / "tests").rglob("*.py"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@functools.cache
def private_names() -> set[str]:
    """Return the private names that the product defines: functions, classes, variables and attributes."""
    found = set()
    for path in modules().values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return {name for name in found if is_private(name)}


def reached(tree: ast.AST, folder: str) -> Iterator[str]:
    """Yield what a test reaches for, as lines to read.

    Args:
        tree: The test.
        folder: Its folder below ``tests``, with dots.
    """
    home, own = ".".join(part for part in (PACKAGE, folder) if part), {"self", "cls", *_defined(tree)}
    for node in ast.walk(tree):
        for name in _private_parts(node, home, own):
            yield f"line {getattr(node, 'lineno', 0)}: {name}"


def _defined(tree: ast.AST) -> Iterator[str]:
    """Yield the classes that a test defines or takes from other tests: their private names are tests' own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests."):
            yield from (alias.asname or alias.name for alias in node.names)


def _private_parts(node: ast.AST, home: str, own: set[str]) -> list[str]:
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
        names = [alias.name for alias in node.names if is_private(alias.name)]
        return [*names, *_foreign_modules(str(node.module), home)]
    if isinstance(node, ast.Attribute) and node.attr in private_names() and not _is_own(node.value, own):
        return [ast.unparse(node)]
    if isinstance(node, ast.Call):
        return _named_in_texts(node, home, own)
    return []


def _foreign_modules(dotted: str, home: str) -> list[str]:
    """Return a dotted path in which a private name is no module of the test's own folder."""
    parts = dotted.split(".")
    places = [place for place, part in enumerate(parts) if is_private(part)]
    module = home.count(".") + 1
    return [] if not places or (places == [module] and dotted.startswith(f"{home}._")) else [dotted]


def _is_own(value: ast.expr, own: set[str]) -> bool:
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id == "super"
    return isinstance(value, ast.Name) and value.id in own


def _named_in_texts(call: ast.Call, home: str, own: set[str]) -> list[str]:
    """Return private names that a patch is told in texts: ``setattr(module, "_name", …)`` and dotted paths."""
    texts = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    dotted = [
        name for text in texts if re.fullmatch(rf"{PACKAGE}(\.\w+)+", text) for name in _foreign_modules(text, home)
    ]
    patched = ast.unparse(call.func).split(".")[-1] in ("setattr", "delattr", "getattr")
    if not patched or _is_own(call.args[0], own):
        return dotted
    return [*dotted, *(text for text in texts if text in private_names())]


def folder_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "tests").parent.parts)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT / "tests").as_posix())
def test_a_test_asks_for_public_names(path: Path) -> None:
    assert list(reached(ast.parse(path.read_text(encoding="utf-8")), folder_of(path))) == []


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("from lucid_deploy.artifact.read import _check_layers", 1),
        ("from lucid_deploy.cli._options import Options", 0),
        ("from lucid_deploy.cache.layout import CacheTensor", 0),
        ("manifest._parse_manifest({})", 1),
        ("artifact._graphs.clear()", 1),
        ("monkeypatch.setattr(exporter, '_build', None)", 1),
        ("monkeypatch.setattr('lucid_deploy.export.exporter._build', None)", 1),
        ("monkeypatch.setattr('lucid_deploy.cli._console._width', None)", 1),
        ("monkeypatch.setattr('lucid_deploy.cli._console.write_json', None)", 0),
        ("self._graphs = super()._graphs", 0),
        ("class Own(Session): pass\nOwn._build()\nmonkeypatch.setattr(Own, '_build', None)", 0),
        ("torch._C._something_of_theirs()", 0),
        ("names == {'_build'}", 0),
    ],
)
def test_private_names_are_seen(source: str, count: int) -> None:
    assert len(list(reached(ast.parse(source), "cli"))) == count
    assert len(list(reached(ast.parse("from lucid_deploy.cli._options import Options"), "serving"))) == 1
