"""Only the table spells operators' names, and PyTorch's operators and existing artifacts agree with it."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lucid_deploy.plugins.table import DOMAIN, FLOATS, LIBRARY_ONLY, OPERATORS, VERSION, Operator

ROOT = Path(__file__).parents[2]
FOLDERS = ("lucid_deploy", "conformance", "export", "plugins", "benchmarks", "examples", "tools")
TABLE = ROOT / "plugins" / "table.py"
SPELLED = [DOMAIN, *(each.name for each in (*OPERATORS, *LIBRARY_ONLY))]
NAMES = re.compile(r"\b(" + "|".join(map(re.escape, SPELLED)) + r")\b")
IN_TORCH = [each for each in OPERATORS if each.torch_name]


def docstrings(tree: ast.AST) -> Iterator[ast.expr]:
    """Yield expressions that are statements, such as docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            yield node.value


def spelled(path: Path) -> list[str]:
    """Return the names in a Python file's string constants."""
    tree = ast.parse(path.read_text())
    documentation = {id(node) for node in docstrings(tree)}
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documentation]
    return [name for text in texts if isinstance(text, str) for name in NAMES.findall(text)]


def test_only_the_table_spells_names_in_python() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if path != TABLE]
    assert len(files) > 100
    assert {str(path.relative_to(ROOT)): names for path in files if (names := spelled(path))} == {}
    assert set(SPELLED) == set(spelled(TABLE))


def test_no_names_are_spelled_in_cpp() -> None:
    files = [path for path in (ROOT / "plugins").rglob("*") if path.suffix in (".cpp", ".h", ".inl")]
    assert len(files) > 10
    strings = {path: re.findall(r'"(?:[^"\\\n]|\\.)*"', re.sub(r"//.*", "", path.read_text())) for path in files}
    assert {path: found for path, texts in strings.items() if (found := NAMES.findall(" ".join(texts)))} == {}


def test_names_in_existing_artifacts_do_not_change() -> None:
    """Existing artifacts contain these names; the table may only grow."""
    found = {each.name: (each.input_names, each.output_names) for each in OPERATORS}
    assert (DOMAIN, VERSION) == ("ai.lucid", 1)
    assert found["Precondition"] == (("K", "V", "K_past", "Y_past", "mask"), ("Y",))
    assert found["CausalAttention"] == (("Q", "K", "Y", "mask"), ("O",))
    assert found["DecodeAttention"] == (("Q", "K_new", "V_new", "K", "Y", "mask"), ("O", "Y_new"))


@pytest.mark.parametrize("operator", IN_TORCH, ids=lambda each: each.name)
def test_pytorch_operators_match_the_table(operator: Operator) -> None:
    """PyTorch's names are in lower case; arguments that are not tensors follow."""
    namespace, name = operator.torch_name.split("::")
    importlib.import_module(f"lucid_deploy.plugins.{name}.torch_operator")  # which registers it
    found = getattr(getattr(torch.ops, namespace), name).default._schema
    tensors = [each.name for each in found.arguments if "Tensor" in str(each.type)]
    assert tensors == [each.lower() for each in operator.input_names]
    assert len(found.returns) == len(operator.outputs)
    arguments = [each.name for each in found.arguments]
    assert {"epsilon" if each == "eps" else each for each in arguments} >= {each.name for each in operator.required}
    assert set(operator.types) >= set(FLOATS)
