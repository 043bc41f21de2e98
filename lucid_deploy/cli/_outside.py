"""The options that name references which others wrote."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class OutsideOptions:
    """References beside this toolkit's own model.

    Attributes:
        golden: A golden file.
        against: ``transformers``.
    """

    golden: str | None = None
    against: str | None = None


def outside_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it gets them as one :class:`OutsideOptions`, ``outside``."""

    @click.option(
        "--golden",
        metavar="FILE",
        help="Compare with what the model's own code recorded too: token ids, logits, perhaps K and Y of layers, in a "
        "safetensors file that examples/dump_golden.py writes.",
    )
    @click.option(
        "--against",
        type=click.Choice(["transformers"]),
        help="Compare with the checkpoint in transformers' own class too, in float64; standard attention only.",
    )
    @functools.wraps(function)
    def command(golden: str | None, against: str | None, **given: Any) -> Any:
        return function(outside=OutsideOptions(golden, against), **given)

    return command
