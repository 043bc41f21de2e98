"""Errors that a user can cause: exit statuses, and pip commands that install what is missing."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lucid_deploy.errors import CheckFailed, LucidError, in_one_line, missing_extra, missing_package, spelled_out

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FOLDERS = ("lucid_deploy", "conformance", "export", "plugins")
PRODUCT = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def strings(path: Path) -> list[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def named(line: str) -> dict[str, Requirement]:
    """The packages of a line for pip, by name; each must be what pip reads."""
    return {item.name: item for item in map(Requirement, re.findall(r'"([^"]+)"', line))}


def test_a_failed_check_is_a_lucid_error_with_status_1() -> None:
    assert (LucidError.exit_code, CheckFailed.exit_code) == (2, 1)
    with pytest.raises(LucidError):
        raise CheckFailed("sha256 differs")


@pytest.mark.parametrize("extra", ["cpu", "serve", "ray", "eval", "trt"])
def test_an_extra_is_spelled_out_as_its_packages(extra: str) -> None:
    line = spelled_out(f'pip install "lucid-deploy[{extra}]"')
    wanted = {item.name: item for item in map(Requirement, EXTRAS[extra])}
    found = named(line)
    assert found.keys() == wanted.keys()
    assert all(found[name].specifier == wanted[name].specifier for name in found)
    assert all(found[name].extras == wanted[name].extras for name in found)
    assert "lucid" not in line and ";" not in line


def test_the_message_has_the_pip_command() -> None:
    message = str(missing_extra("onnxruntime", "cpu", "run an artifact"))
    assert message.endswith('is not installed. Run: pip install "onnxruntime<2,>=1.23.1"')
    assert str(missing_package("thing", "thing[all]", "do it")).endswith('Run: pip install "thing[all]"')


def test_without_an_installation_the_checkout_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert spelled_out('pip install "lucid-deploy[cpu]"') == 'pip install -e ".[cpu]"'


def test_extras_that_the_code_names_exist() -> None:
    text = "\n".join(line for path in PRODUCT for line in strings(path))
    extras = set(re.findall(r"lucid-deploy\[(\w+)\]", text))
    assert {"cpu", "kernels"} <= extras - {"extra"} <= EXTRAS.keys()  # that one is a docstring's


def test_every_hint_is_spelled_out_before_it_is_shown() -> None:
    """A module with the text ``lucid-deploy[`` must pass it to ``spelled_out``."""
    for path in PRODUCT:
        source = path.read_text(encoding="utf-8").replace('install="lucid-deploy[', "")  # runtime.py spells it out
        if "lucid-deploy[" in source and path.name != "gpu.py":
            assert "spelled_out" in source, path


@pytest.mark.parametrize("end", ["\n", "\r\n", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"])
def test_the_message_of_a_library_becomes_one_line(end: str) -> None:
    assert in_one_line(ValueError(f"unknown{end}type")) == "unknown type"
