"""Objects that other installed packages register as entry points."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from lucid_deploy.errors import LucidError, in_one_line

T = TypeVar("T")


def entry_points(group: str) -> dict[str, list[EntryPoint]]:
    """Return what installed packages register in a group, such as ``lucid_deploy.runtimes``, without loading it."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=group):
        found.setdefault(entry.name, []).append(entry)
    return found


def load_plugin(group: str, name: str, kind: type[T], what: str, attribute: str = "name") -> T | None:
    """Load the object of a class that an installed package registers under a name; None if none does.

    ``what`` is the word for such objects in messages; their own ``attribute`` must be the name.
    """
    found = entry_points(group).get(name, [])
    if not found:
        return None
    if len(found) > 1:
        raise LucidError(f"Several packages bring a {what} {name}: {', '.join(map(_origin, found))}. Remove one.")
    wanted: Any = kind  # abstract, for which type checkers have no word
    loaded: T = _load(found[0], wanted, what, attribute)
    return loaded


@cache
def _load(entry: EntryPoint, kind: Any, what: str, attribute: str) -> Any:
    label = f"{what.capitalize()} {entry.name} of {_origin(entry)}"
    try:
        loaded: Any = entry.load()
    except Exception as error:  # a package's own code, which may raise anything: its author is named
        reason = f"{type(error).__name__}: {in_one_line(error)}".removesuffix(".")
        raise LucidError(f"{label} does not load: {reason}. Install its package again, or remove it.") from error
    if not isinstance(loaded, kind) or getattr(loaded, attribute) != entry.name:
        wanted = f"an object of a subclass of {kind.__name__} whose {attribute} is {entry.name}"
        raise LucidError(f"{label} is no {what}: it must be {wanted}.")
    return loaded


def _origin(entry: EntryPoint) -> str:
    return entry.value if entry.dist is None else f"{entry.dist.name} ({entry.value})"
