"""Texts that name files: a shell completes them, the command takes them as they are."""

from __future__ import annotations

import click
import pytest

from lucid_deploy.cli._path_text import PathText, complete_paths


@pytest.mark.parametrize(("metavar", "kind"), [("FILE", "file"), ("[FILE]", "file"), ("ARTIFACT", "dir")])
def test_texts_that_name_files_are_completed(metavar: str, kind: str) -> None:
    option = click.Option(["--it"], metavar=metavar)
    complete_paths([option])
    (offered,) = option.shell_complete(click.Context(click.Command("x")), "some")
    assert (offered.value, offered.type) == ("some", kind)
    assert option.type_cast_value(click.Context(click.Command("x")), "no such file") == "no such file"


def test_other_texts_and_types_stay() -> None:
    options = [click.Option(["--it"], metavar="TEXT"), click.Option(["--at"], metavar="FILE", type=click.Path())]
    before = [option.type for option in options]
    complete_paths(options)
    assert [option.type for option in options] == before


def test_help_says_text() -> None:
    assert PathText("file").name == "text"
