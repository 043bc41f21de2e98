"""The options that name references which others wrote arrive as one value."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from lucid_deploy.cli._outside import OutsideOptions, outside_options
from lucid_deploy.parity.outside import AGAINST

seen: list[tuple[str, OutsideOptions]] = []


@click.command()
@click.argument("artifact")
@outside_options
def command(artifact: str, outside: OutsideOptions) -> None:
    seen.append((artifact, outside))


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], OutsideOptions(None, None)),
        (["--golden", "file"], OutsideOptions("file", None)),
        (["--against", "transformers", "--golden", "file"], OutsideOptions("file", "transformers")),
    ],
    ids=str,
)
def test_they_arrive_together(words: list[str], wanted: OutsideOptions) -> None:
    seen.clear()
    assert CliRunner().invoke(command, ["artifact", *words]).exit_code == 0
    assert seen == [("artifact", wanted)]


def test_another_library_is_bad_usage() -> None:
    seen.clear()
    result = CliRunner().invoke(command, ["artifact", "--against", "vllm"])
    assert result.exit_code == 2 and "'vllm' is not 'transformers'" in result.stderr and seen == []


def test_the_command_offers_what_there_is() -> None:
    (option,) = [item for item in command.params if item.name == "against"]
    assert isinstance(option.type, click.Choice) and tuple(option.type.choices) == AGAINST
