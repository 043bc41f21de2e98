"""Options of ``serve`` that only one of its engines has: each says so where it is declared."""

from __future__ import annotations

from typing import Any

import click

from lucid_deploy.cli._sources import is_given, long_name, origins
from lucid_deploy.errors import LucidError

LOCAL, RAY = "local", "ray"


class EngineOption(click.Option):
    """An option for one ``--engine`` alone; with the other one it is refused.

    Args:
        engine: Which one, LOCAL or RAY.
    """

    def __init__(self, *arguments: Any, engine: str, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.engine = engine


def check_engine(context: click.Context, engine: str) -> None:
    """Refuse options that were given and are for another engine.

    Raises:
        LucidError: There is one.
    """
    for option in context.command.params:
        if isinstance(option, EngineOption) and option.engine != engine and is_given(context, option.name or ""):
            reason = "; with ray, Ray's proxies handle the connections" if option.engine == LOCAL else ""
            where = origins(context, [option])
            raise LucidError(f"{long_name(option)} is for --engine {option.engine}{reason}.{where} Leave it out.")
