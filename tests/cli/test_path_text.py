"""Texts that name files: a shell completes them, the command takes them as they are."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from lucid_deploy.cli import main
from lucid_deploy.cli._path_text import PathText, complete_paths


@pytest.mark.parametrize(("metavar", "kind"), [("FILE", "file"), ("[FILE]", "file"), ("ARTIFACT", "dir")])
def test_texts_that_name_files_are_completed(metavar: str, kind: str) -> None:
    option = click.Option(["--it"], metavar=metavar)
    complete_paths([option])
    (offered,) = option.shell_complete(click.Context(click.Command("x")), "some")
    assert (offered.value, offered.type) == ("some", kind)
    assert option.type_cast_value(click.Context(click.Command("x")), "no such file") == "no such file"


def test_other_texts_and_types_stay() -> None:
    options = [click.Option(["--it"], metavar="TEXT"), click.Option(["--at"], metavar="FILE", type=int)]
    before = [option.type for option in options]
    complete_paths(options)
    assert [option.type for option in options] == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "", "--output", "x"],
        ["export", "demo", "--output", ""],
        ["run", "x", "--draft", ""],
        ["inspect", ""],
        ["inspect", "x", "--json", ""],
        ["clean", ""],
        ["eval", "x", "--suite", "mniah", "--output-path", ""],
        ["plugin", "build", "--output", ""],
        ["doctor", "--config", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_current_folder(arguments: list[str]) -> None:
    """Which is what a shell makes of a variable that is not set."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "it is empty; the current folder is written as a dot." in " ".join(result.stderr.split())


def test_a_path_keeps_its_type() -> None:
    option = click.Option(["--it"], type=click.Path(path_type=Path))
    complete_paths([option])
    assert option.type_cast_value(click.Context(click.Command("x")), "a") == Path("a")


def test_help_says_text() -> None:
    assert PathText("file").name == "text"
