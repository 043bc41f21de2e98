"""Pages are short, and what they name exists: links, options, files, messages."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import click

from lucid_deploy.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
WORDS_OF_A_PAGE, WORDS_IN_ALL, COLUMNS = 1800, 35_000, 120
FOLDERS = ("lucid_deploy", "export", "plugins", "conformance", "tests", "benchmarks", "examples", "docs", "tools")
PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./-]*\w|(?:{'|'.join(FOLDERS)})/(?=`)")
# Options of other programs that pages show: pip's, docker's, TensorRT's and Polygraphy's.
OTHERS = {"--no-deps", "--cpus", "--cpuset-cpus", "--target", "--trt", "--plugins", "--from-file"}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def without_blocks(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)


def test_pages_are_short() -> None:
    words = {page.name: len(text_of(page).split()) for page in PAGES}
    assert {name: count for name, count in words.items() if count > WORDS_OF_A_PAGE} == {}
    assert sum(words.values()) <= WORDS_IN_ALL
    assert len(text_of(ROOT / "CHANGELOG.md").split()) <= WORDS_OF_A_PAGE


def test_tables_fit_a_screen() -> None:
    lines = [(page.name, line) for page in DOCS for line in without_blocks(page).splitlines() if line.startswith("|")]
    assert [(name, line) for name, line in lines if len(line) > COLUMNS] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as mkdocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.M)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    broken = []
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for target, anchor in re.findall(r"\]\(\s*(?!https?:)([^)#]*)#?([^)]*)\)", text_of(page)):
            file = page.parent / target if target else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{page.name}: {target}#{anchor}")
    assert broken == []


def test_every_page_is_in_the_site_and_every_picture_on_a_page() -> None:
    site = text_of(ROOT / "mkdocs.yml")
    assert [page.name for page in DOCS if f": {page.name}\n" not in site] == []
    shown = "".join(map(text_of, PAGES))
    pictures = (path for path in (ROOT / "docs" / "images").rglob("*") if path.is_file())
    assert [path.name for path in pictures if f"images/{path.name}" not in shown] == []


@cache
def options() -> dict[str, set[str]]:
    """Return the options of each command; those of a group's commands are its own."""

    def of(command: click.Command) -> set[str]:
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        own = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        return own.union({"--help"}, *(of(each) for each in inner))

    found = {name: main.get_command(click.Context(main), name) for name in COMMANDS}
    return {name: of(command) for name, command in found.items() if command is not None}


def test_commands_in_blocks_have_the_options_that_pages_show() -> None:
    wrong = []
    for page in PAGES:
        blocks = "\n".join(re.findall(r"```\w*\n(.*?)```", text_of(page), re.S)).replace("\\\n", " ")
        for name, rest in re.findall(r"^(?:[A-Z_]+=\S+ )?lucid-deploy (\w+)(.*)$", blocks, re.M):
            used = {word.split("=")[0] for word in rest.split("#")[0].split() if re.match(r"--[a-z]", word)}
            wrong += [f"{page.name}: {name} {option}" for option in used - options().get(name, set())]
    assert wrong == []


@cache
def scripts() -> str:
    """Return the sources of the other programs that pages name."""
    found = (path for name in (".ci", "benchmarks", "examples", "conformance") for path in (ROOT / name).rglob("*.py"))
    return "\n".join(map(text_of, found))


def test_options_in_the_text_exist() -> None:
    known = OTHERS.union(*options().values())
    wrong = []
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", " ".join(re.findall(r"`([^`\n]+)`", without_blocks(page)))))
        wrong += [f"{page.name}: {name}" for name in named - known - {"--version"} if f'"{name}"' not in scripts()]
    assert wrong == []


def test_every_command_is_on_the_page_of_the_command_line() -> None:
    page = text_of(ROOT / "docs" / "command-line.md")
    assert [name for name in COMMANDS if f"`lucid-deploy {name}" not in page] == []


@cache
def functions_in(path: str) -> set[str]:
    tree = ast.parse(text_of(ROOT / path))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_files_and_tests_that_pages_name_exist() -> None:
    missing = []
    for page in PAGES:
        for span in re.findall(r"`([^`\n]+)`", without_blocks(page)):
            missing += [f"{page.name}: {name}" for name in PATH.findall(span) if not (ROOT / name).exists()]
            for path, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", span):
                if (ROOT / path).exists() and name not in functions_in(path):
                    missing.append(f"{page.name}: {path}::{name}")
    assert missing == []


@cache
def messages() -> str:
    """Return all strings of the product, a line each."""
    paths = (path for name in FOLDERS[:4] for path in sorted((ROOT / name).rglob("*.py")))
    nodes = (node for path in paths for node in ast.walk(ast.parse(text_of(path))))
    return "\n".join(each.value for each in nodes if isinstance(each, ast.Constant) and isinstance(each.value, str))


def test_the_code_prints_the_messages_of_the_troubleshooting_page() -> None:
    listed = re.findall(r"^- `([^`]+)`", text_of(ROOT / "docs" / "troubleshooting.md"), re.M)
    pieces = [piece.strip(" :") for message in listed for piece in message.split("…")]
    assert len(listed) > 40
    assert [piece for piece in pieces if piece not in messages()] == []
