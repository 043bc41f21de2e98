"""Options of one engine are refused with the other, whatever value they have and wherever it comes from."""

from __future__ import annotations

import click
import pytest

from lucid_deploy.cli._engine_options import LOCAL, RAY, EngineOption, check_engine
from lucid_deploy.cli.serve import command
from lucid_deploy.errors import LucidError

OURS = [option for option in command.params if isinstance(option, EngineOption)]


def context_of(name: str, value: str) -> click.Context:
    return command.make_context("serve", ["artifact", name, value])


def test_every_option_that_its_help_gives_to_ray_is_declared_so() -> None:
    said = {
        item.name for item in command.params if isinstance(item, click.Option) and (item.help or "")[:8] == "With ray"
    }
    assert said == {option.name for option in OURS if option.engine == RAY} != set()


@pytest.mark.parametrize("option", OURS, ids=lambda option: option.name)
def test_an_option_of_the_other_engine_is_refused_with_its_default_too(option: EngineOption) -> None:
    context = context_of(option.opts[0], str(option.default if isinstance(option.default, float) else 2))
    check_engine(context, option.engine)
    with pytest.raises(LucidError, match=f"^{option.opts[0]} is for --engine {option.engine}[.;]"):
        check_engine(context, LOCAL if option.engine == RAY else RAY)


def test_what_was_not_given_is_not_refused() -> None:
    for engine in (LOCAL, RAY):
        check_engine(context_of("--rows", "2"), engine)
