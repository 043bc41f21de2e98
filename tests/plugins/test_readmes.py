"""The READMEs name every implementation, and nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lucid_deploy.plugins.table import OPERATORS

PLUGINS = Path(__file__).parents[2] / "plugins"
TESTS = Path(__file__).parent
PARTS = sorted(path.parent for path in PLUGINS.glob("*/README.md") if path.parent.name != "hosts")
HOSTS = PLUGINS / "hosts"
SOURCES = (".py", ".h", ".inl", ".cpp", ".json", ".onnxtxt")
COLUMNS = {"reference": 1, "torch_operator": 3, "onnx_body": 4, "kernel": 5, "cpu": 6, "tensorrt": 7}


def rows(readme: Path) -> list[list[str]]:
    """Return the cells of the first table, without its heading."""
    lines = readme.read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return table


def names(cell: str) -> list[str]:
    return re.findall(r"`([\w./]+\.\w+)`", cell)


def files(folder: Path) -> set[str]:
    found = {path for path in folder.rglob("*") if path.suffix in SOURCES and path.name != "__init__.py"}
    return {path.relative_to(folder).as_posix() for path in found}


@pytest.mark.parametrize("folder", PARTS, ids=lambda folder: folder.name)
def test_a_folders_rows_are_its_files_and_their_tests(folder: Path) -> None:
    table = rows(folder / "README.md")
    assert {name for row in table for name in names(row[1])} == files(folder)
    for row in table:
        tests = names(row[-1])
        assert tests, f"{row[0]}: no test"
        for test in tests:
            assert (TESTS / folder.name / test).is_file(), f"{row[0]}: {test}"


def test_the_hosts_rows_are_their_files() -> None:
    text = (HOSTS / "README.md").read_text()
    named = {name for line in text.splitlines() if line.startswith("|") for name in names(line.split(" | ")[0])}
    assert named == files(HOSTS)


def test_the_table_of_implementations_is_what_is_there() -> None:
    table = {re.match(r"\[(\w+)\]", row[0])[1]: row for row in rows(PLUGINS / "README.md")}
    assert set(table) == {folder.name for folder in PARTS if folder.name != "shared"}
    for folder, row in table.items():
        linked = {target for cell in row[1:] for target in re.findall(r"\]\(([^)]+)\)", cell)}
        for stem, column in COLUMNS.items():
            there = [path.name for path in (PLUGINS / folder).glob(f"{stem}.*")]
            implementation = [f"{folder}/{name}" for name in there if not name.endswith(".h")]
            assert re.findall(r"\]\(([^)]+)\)", row[column]) == implementation, f"{folder}: {stem}"
        assert all((PLUGINS / target).is_file() for target in linked)


def test_every_operator_of_pytorch_is_a_folder() -> None:
    assert {each.torch_name.split("::")[1] for each in OPERATORS if each.torch_name} <= {each.name for each in PARTS}


@pytest.mark.parametrize("readme", sorted(PLUGINS.rglob("README.md")), ids=lambda path: path.parent.name)
def test_links_lead_somewhere(readme: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", readme.read_text()):
        assert (readme.parent / target).exists(), target
