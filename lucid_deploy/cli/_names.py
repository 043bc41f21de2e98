"""Names of options: which of several counts, how the environment writes them, and which one was probably meant."""

from __future__ import annotations

from collections.abc import Collection

import click


def long_name(parameter: click.Parameter) -> str:
    """Return the longest spelling of an option, ``--json``: what a file and the environment name it after."""
    return max(parameter.opts, key=len)


def in_capitals(name: str) -> str:
    """Return a name as variables of the environment have it: ``--max-body`` is ``MAX_BODY``."""
    return name.lstrip("-").replace("-", "_").upper()


def near(name: str, known: Collection[str]) -> str:
    """Return a question after the known name that is probably meant, with a blank before it; empty if there is none."""
    found = nearest(name, known)
    return "" if found is None else f" Did you mean {found}?"


def nearest(name: str, known: Collection[str]) -> str | None:
    """Return the known name that is probably meant; None if there is none."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(name, known, n=1)), None)
