"""The command line documents itself, and loads nothing heavy for that."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

import lucid_deploy.cli
from lucid_deploy.cli import COMMANDS, main

names = pytest.mark.parametrize("name", COMMANDS)


def command(name: str) -> click.Command:
    found = main.get_command(click.Context(main), name)
    assert found is not None
    return found


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from lucid_deploy.cli import COMMANDS, main
for arguments in [[], *([name] for name in COMMANDS)]:
    main([*arguments, "--help"], standalone_mode=False)
print([name for name in ("torch", "onnx", "onnxruntime", "onnxscript", "numpy", "tokenizers") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_every_module_is_a_command() -> None:
    modules = {module.name for module in pkgutil.iter_modules(lucid_deploy.cli.__path__)}
    assert {name for name in modules if not name.startswith("_")} == set(COMMANDS)


@names
def test_the_list_of_commands_says_what_each_help_says(name: str) -> None:
    first_line = (command(name).help or "").splitlines()[0]
    assert first_line.startswith(COMMANDS[name].removesuffix("."))
    assert COMMANDS[name] in CliRunner().invoke(main, ["--help"], terminal_width=120).stdout


@names
def test_every_option_has_help(name: str) -> None:
    options = [parameter for parameter in command(name).params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []


@names
def test_every_help_has_an_example_that_parses(name: str) -> None:
    lines = [line.strip() for line in (command(name).help or "").splitlines()]
    examples = [line.removeprefix("Example: ") for line in lines if line.startswith("Example: ")]
    assert len(examples) == 1
    import shlex

    program, subcommand, *arguments = shlex.split(examples[0])
    assert (program, subcommand) == ("lucid-deploy", name)
    command(name).make_context(name, arguments)
