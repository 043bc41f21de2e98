"""Imports inside of ``plugins`` point one way, lazy ones included, and the packages stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import PATIENCE

PLUGINS = Path(__file__).parents[2] / "plugins"
PREFIX = "lucid_deploy.plugins"
OUTSIDE = {"lucid_deploy.errors", "lucid_deploy.files"}
HEAVY = ("torch", "triton", "onnx", "onnxscript")
# From the bottom to the top: a module imports from its own layer and those below it.
LAYERS = ("table", "shared", "block_inverse", "operators", "hosts")


def layer(module: str) -> str:
    """Return the layer of a module below ``lucid_deploy.plugins``."""
    part = module.removeprefix(PREFIX + ".").split(".")[0]
    return part if part in LAYERS else "operators"


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of ours that a file imports anywhere, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def modules() -> list[tuple[str, Path]]:
    return [(PREFIX + "." + ".".join(path.relative_to(PLUGINS).with_suffix("").parts), path) for path in sources()]


def sources() -> list[Path]:
    return sorted(path for path in PLUGINS.rglob("*.py") if path != PLUGINS / "__init__.py")


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda value: str(value) if isinstance(value, str) else "")
def test_imports_point_down(module: str, path: Path) -> None:
    for name in imported(path):
        if not name.startswith("lucid_deploy"):
            continue
        if name.startswith(PREFIX + "."):
            assert LAYERS.index(layer(name)) <= LAYERS.index(layer(module)), f"{module} imports {name}"
        else:
            assert any(name.startswith(each + ".") for each in OUTSIDE), f"{module} imports {name}"


def test_the_layers_are_those_that_are_there() -> None:
    assert {layer(module) for module, _ in modules()} == set(LAYERS)


def loaded(statement: str) -> set[str]:
    """Return which heavy packages a fresh process has loaded after a statement."""
    code = f"{statement}\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE)
    return set(result.stdout.split())


def test_the_table_imports_nothing() -> None:
    assert loaded("import lucid_deploy.plugins.table") == set()
    allowed = {"__future__", "dataclasses"}
    assert {name.split(".")[0] for name in imported(PLUGINS / "table.py")} == allowed


OPERATORS = ("precondition", "decode_attention", "causal_attention", "delta_rule", "scatter_row")
# Each package is imported by a child of one process, which has imported PyTorch once for all of them.
BEHIND_PYTORCH = f"""
import os, sys, torch
for name in {OPERATORS}:
    if os.fork() == 0:
        __import__("lucid_deploy.plugins." + name)
        print(name, *(each for each in {HEAVY} if each in sys.modules), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def behind_pytorch() -> dict[str, list[str]]:
    """Which heavy packages are loaded after each operator's package was imported where PyTorch is loaded."""
    command = [sys.executable, "-c", BEHIND_PYTORCH]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout
    return {name: heavy for name, *heavy in map(str.split, said.splitlines())}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operators_package_imports_pytorch_alone(name: str, behind_pytorch: dict[str, list[str]]) -> None:
    assert behind_pytorch[name] == ["torch"]
    assert "torch" in {each.split(".")[0] for path in (PLUGINS / name).glob("*.py") for each in imported(path)}


@pytest.mark.parametrize("name", ["hosts.tensorrt.build", "hosts.tensorrt.registry", "hosts.onnxruntime.build"])
def test_building_and_registering_import_none_of_them(name: str) -> None:
    assert loaded(f"import lucid_deploy.plugins.{name}") == set()
