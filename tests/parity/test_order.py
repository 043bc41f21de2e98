"""Imports inside the package point one way, it knows no runtime, and every module has its tests where they belong."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lucid_deploy.parity

ROOT = Path(lucid_deploy.parity.__file__).parent
LAYERS = ("measure", "causes", "show")  # in order; modules beside these folders come last
PACKAGE = "lucid_deploy.parity"


def modules():
    """Return every module but the packages' own, by its name in the package, such as ``measure.gate``."""
    paths = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def imported(text, names):
    """Return the modules of the package that a text imports: anywhere in it, functions and type checking included."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}  # a module or what is in one
    inside = {name.removeprefix(f"{PACKAGE}.") for name in found if name.startswith(f"{PACKAGE}.")}
    return {name if name in names else name.rpartition(".")[0] for name in inside}


@pytest.fixture(scope="module")
def graph():
    names = modules()
    return {name: imported(path.read_text(), names) for name, path in names.items()}


def layer(name):
    first = name.partition(".")[0]
    return LAYERS.index(first) if first in LAYERS and "." in name else len(LAYERS)


def test_folders_import_from_those_before_them_only(graph):
    wrong = [(name, other) for name, others in graph.items() for other in others if layer(other) > layer(name)]
    assert wrong == []


def test_no_module_imports_itself_by_a_detour(graph):
    list(TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_nothing_inside_imports_the_package_itself(graph):
    """It would bring all of it along."""
    assert all("" not in others and not others & set(LAYERS) for others in graph.values())


def test_imports_are_seen_wherever_they_stand(graph):
    assert "measure.gate" in graph["show.words"] and "measure.candidate" in graph["sessions"]
    lazy = "def f():\n    from lucid_deploy.parity.show import words\n    import lucid_deploy.parity.measure.gate\n"
    assert imported(lazy, modules()) == {"show.words", "measure.gate"}


@pytest.mark.parametrize("name", sorted(modules()))
def test_every_module_has_tests(name):
    *folders, last = name.split(".")
    assert Path(__file__).parent.joinpath(*folders, f"test_{last}.py").is_file()


def test_parity_imports_neither_torch_nor_a_runtime():
    wanted = "{'torch', 'onnx', 'onnxruntime', 'rich', 'jinja2'}"
    code = f"import sys, lucid_deploy.parity; print(sorted({wanted} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
