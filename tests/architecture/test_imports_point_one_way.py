"""The product's packages stand in an order, and imports point down it; no module imports itself in a circle."""

from __future__ import annotations

import functools
import re

import pytest

from tests.architecture.imports import ORDER, PACKAGE, ROOT, Import, circles, imports, modules, package

KNOWN = modules()


@functools.cache
def all_imports() -> list[Import]:
    return list(imports(KNOWN))


def upward(found: list[Import]) -> list[str]:
    """Return the imports that point up the order, as lines to read."""
    places = {name: place for place, name in enumerate(ORDER)}
    return [
        f"{item.module}:{item.line} imports {item.wanted}"
        for item in found
        if package(item.module) and places[package(item.wanted)] > places[package(item.module)]
    ]


def test_every_package_has_a_place_in_the_order():
    assert {package(name) for name in KNOWN} - {""} == set(ORDER)


def test_imports_point_down_the_order():
    assert upward(all_imports()) == []


def test_no_module_imports_itself_in_a_circle():
    edges = {(item.module, item.wanted) for item in all_imports() if not item.for_types and item.module != item.wanted}
    assert circles(edges) == []


def test_the_order_in_the_docs_is_this_one():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    assert tuple(table) == ORDER


def test_an_import_upwards_and_a_circle_are_found():
    wrong = Import("lucid_deploy.cache.layout", 1, "lucid_deploy.cli.run", False)
    assert upward([wrong]) == ["lucid_deploy.cache.layout:1 imports lucid_deploy.cli.run"]
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == [["a", "b", "c"]]


@pytest.mark.parametrize("module", ["lucid_deploy.export.trace", f"{PACKAGE}.runtimes.session"])
def test_imports_inside_functions_are_seen(module: str):
    assert any(item.module == module for item in all_imports())


def test_the_compatibility_run_collects_all_of_its_tests():
    folders = re.search(r"^COMPAT := ([^#\n]+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    tests = (ROOT / "tests").rglob("test_*.py")
    marked = [path for path in tests if re.search(r"pytest\.mark\.compat", path.read_text(encoding="utf-8"))]
    names = [path.relative_to(ROOT).as_posix() for path in marked]
    assert len(names) > 15 and [name for name in names if not name.startswith(tuple(folders))] == []
