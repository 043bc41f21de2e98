"""Options, files and commands that the prose names are those of the code."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import click
import pytest

from lucid_deploy.cli import COMMANDS, main
from tests.docs.code_strings import strings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
# Options of other programs: pip's, DeepSpeed's script's, TensorRT's, Polygraphy's, docker's.
OTHERS = {
    "--cpus",
    "--cpuset-cpus",
    "--no-deps",
    "--safe_serialization",
    "--display-as",
    "--dynamicPlugins",
    "--plugins",
    "--trt",
}
FILE = re.compile(r"[\w./{}*-]+\.(?:json|jsonl|bin|onnx|toml|safetensors|engine|so|j2|model)(?:\.\w+)*\b")
# Files of users, which stand for any, and a prefix of weights that looks like one.
USERS = {
    "model.model",
    "golden.safetensors",
    "run.toml",
    "answers.jsonl",
    "prompts.jsonl",
    "prompts.json",
    "model-0000X-of-0000Y.safetensors",
}
FOLDERS = ("lucid_deploy", "conformance", "export", "plugins", "benchmarks", "examples")


def options(command: click.Command) -> set[str]:
    if isinstance(command, click.Group):
        return {name for inner in command.commands.values() for name in options(inner)}
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@functools.cache
def all_options() -> set[str]:
    found = (main.get_command(click.Context(main), name) for name in COMMANDS)
    return {"--help", "--version", *(name for command in found if command is not None for name in options(command))}


@functools.cache
def scripts() -> str:
    """What other programs of the repository take: benchmarks, examples, the example in C++, and what builds wheels."""
    found = (path for name in (".ci", "benchmarks", "examples") for path in (ROOT / name).rglob("*"))
    return "\n".join(path.read_text(encoding="utf-8") for path in found if path.suffix in {".py", ".cpp"})


@functools.cache
def tree() -> set[str]:
    """The names of all files and folders of the repository."""
    found = set()
    for _, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in (".venv", ".git")]
        found.update(folders, files)
    return found


def spans(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return INLINE.findall(text)


def unknown_options(text: str) -> set[str]:
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))
    return {name for name in named - all_options() - OTHERS if f'"{name}"' not in scripts()}


def unknown_files(text: str) -> set[str]:
    names = {match.rpartition("/")[2] for match in FILE.findall(text)} - USERS - tree()
    return {name for name in names if not known(name)}


def known(name: str) -> bool:
    """Whether the code has a name, or the end of one that it puts behind a user's name (answers.jsonl + .run.json)."""
    code = strings(*FOLDERS)
    if name in code:
        return True
    stem, *ends = re.split(r"(?=\.)", re.sub(r"\{\w+\}|\*", "", name))
    behind = next((user for user in USERS if name.startswith(f"{user}.")), None)
    if behind is not None:
        return name.removeprefix(behind) in code.split("\n")
    return bool(ends) and not stem and "".join(ends) in code


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_of_the_prose_exist(page: Path) -> None:
    assert {name for span in spans(page) for name in unknown_options(span)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_prose_exist(page: Path) -> None:
    assert {name for span in spans(page) for name in unknown_files(span)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_prose_exist(page: Path) -> None:
    named = {word for span in spans(page) for word in re.findall(r"^lucid-deploy (\w+)", span)}
    assert named <= set(COMMANDS)


def test_what_is_not_there_is_found() -> None:
    assert unknown_options("`--batch --bacth`") == {"--bacth"}
    assert unknown_files("answers.jsonl.run.json weights.bin lucid.json") == set()
    assert unknown_files("answers.jsonl.run") == {"answers.jsonl.run"}
    assert unknown_files("answers.jsonl.rum.json weigths.bin") == {"answers.jsonl.rum.json", "weigths.bin"}
