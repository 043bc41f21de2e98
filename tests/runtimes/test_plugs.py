"""A runtime is a plug: outside its own folder nothing asks which one runs, and the folders import one way."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from lucid_deploy.runtimes.registry import BUILT_IN

ROOT = Path(__file__).parents[2]
RUNTIMES = ROOT / "lucid_deploy" / "runtimes"
FOLDERS = ("lucid_deploy", "conformance", "export", "plugins")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
SHARED = [path for path in FILES if not any(RUNTIMES / name in path.parents for name in BUILT_IN)]
CHOICES = {"runtime", "provider", "kernels"}  # of a session or of options
# Other programs' names for other things: Triton's backends, and the hosts that a library of operators is built for.
OTHER_NAMES = {"backend", "target"}
DECLARING = {RUNTIMES / "options.py"}  # holds a name against those that there are


def called(node: ast.expr) -> str:
    """Return the last part of a name: ``session.runtime`` is runtime."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def asks_which(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that ask which runtime, provider or session class it is."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and not any(isinstance(op, ast.Is | ast.IsNot) for op in node.ops):
            sides = [node.left, *node.comparators]
            words = {each.value for side in sides for each in ast.walk(side) if isinstance(each, ast.Constant)}
            names = {called(side) for side in sides}
            if names & CHOICES or (words & set(BUILT_IN) and not names & OTHER_NAMES):
                yield node.lineno
        elif isinstance(node, ast.Call) and called(node.func) in ("isinstance", "issubclass"):
            if any(called(each).endswith("Session") for each in ast.walk(node.args[1]) if isinstance(each, ast.expr)):
                yield node.lineno
        elif isinstance(node, ast.MatchClass) and called(node.cls).endswith("Session"):
            yield node.lineno


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_nothing_asks_which_runtime_it_is() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SHARED
        if path not in DECLARING
        for line in asks_which(ast.parse(path.read_text()))
    ]
    assert found == []


def test_what_all_runtimes_share_imports_none_of_them() -> None:
    """Only the memory and kernels that ``inspect`` shows are those of onnxruntime."""
    found = {
        (path.name, module)
        for path in sorted(RUNTIMES.glob("*.py"))
        for module in imported(ast.parse(path.read_text()))
        if module.startswith(tuple(f"lucid_deploy.runtimes.{name}" for name in BUILT_IN))
    }
    assert found == {("inspection.py", "lucid_deploy.runtimes.onnxruntime.kernels")}
