"""Options from a TOML file mean what they mean on the command line, and whatever is not known is refused."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from lucid_deploy.cli._config_file import read_defaults
from lucid_deploy.errors import LucidError


@click.group()
def program() -> None:
    pass


@program.command("work")
@click.option("--rows", type=click.IntRange(1, 8))
@click.option("--prefill-chunk", type=int)
@click.option("--loud", is_flag=True)
@click.option("--name", multiple=True)
@click.option("--config")
def work(**_: object) -> None:
    pass


@pytest.fixture
def context() -> click.Context:
    return click.Context(work, click.Context(program, info_name="program"), info_name="work")


def test_values_are_those_of_the_command_line(context: click.Context, tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text('[work]\nrows = 3\nprefill-chunk = 16\nloud = true\nname = ["a", "b"]\n')
    read = read_defaults(str(path), context)
    typed = work.make_context("work", ["--rows", "3", "--prefill-chunk", "16", "--loud", "--name", "a", "--name", "b"])
    options = {option.name: option for option in work.params}
    assert {name: options[name].type_cast_value(context, value) for name, value in read.items()} == {
        name: value for name, value in typed.params.items() if name != "config"
    }
    path.write_text('[work]\nprefill_chunk = 4\nname = "a"\n', encoding="utf-8-sig")  # as Windows' programs do
    assert read_defaults(str(path), context) == {"prefill_chunk": "4", "name": ["a"]}
    path.write_text("")
    assert read_defaults(str(path), context) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[wrok]\n", "wrok is no command; options stand in a table of one. Did you mean work?"),
        ("work = 3\n", "work must be a table of options"),
        ("[work]\nrow = 3\n", "work has no option row. Did you mean rows?"),
        ('[work]\nconfig = "x"\n', "work has no option config"),
        ("[work]\nrows = 9\n", "work.rows: 9 is not in the range"),
        ("[work]\nrows = true\n", "work.rows: must be a text or a number, not true"),
        ("[work]\nrows = [3]\n", "work.rows: must be a text or a number"),
        ('[work]\nloud = "yes"\n', 'work.loud: must be true or false, not "yes"'),
        ('[work]\nname = "a\\u0000b"\n', "work.name: holds a NUL character, which no argument can have"),
        ("[work\n", "is not a TOML file"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str, context: click.Context, tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text(text)
    with pytest.raises(LucidError) as caught:
        read_defaults(str(path), context)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_a_file_that_is_not_there(context: click.Context, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=r"--config .*none\.toml cannot be read: No such file"):
        read_defaults(str(tmp_path / "none.toml"), context)
