"""What other installed packages add: objects that they register as entry points, each checked when it is loaded."""

from __future__ import annotations

import importlib.metadata
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any, TypeVar

from lucid_deploy.errors import LucidError, in_one_line

T = TypeVar("T")


def entry_points(group: str) -> dict[str, list[EntryPoint]]:
    """Return what installed packages register in a group, by name. Loads nothing.

    Args:
        group: Such as ``lucid_deploy.runtimes``.
    """
    found: dict[str, list[EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=group):
        found.setdefault(entry.name, []).append(entry)
    return found


def load_plugin(group: str, name: str, kind: type[T], what: str, attribute: str = "name") -> T | None:
    """Load the object that an installed package registers; None if none does.

    Args:
        group: Such as ``lucid_deploy.runtimes``.
        name: Of the entry.
        kind: The class that it must be an object of.
        what: What such an object is, for messages: ``runtime``.
        attribute: Where the object has its own name, which must be the entry's.
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
        reason = in_one_line(error)
        if not isinstance(error, ImportError | AttributeError | LucidError):
            reason = f"{type(error).__name__}: {reason}"
        reason = reason.removesuffix(".")
        raise LucidError(f"{label} does not load: {reason}. Install its package again, or remove it.") from error
    if isinstance(loaded, type):
        raise LucidError(f"{label} is no {what}, but a class: name an object of it, as in {loaded.__name__}().")
    if not isinstance(loaded, kind):
        raise LucidError(f"{label} is no {what}: it is no object of a subclass of {kind.__name__}.")
    if (own := getattr(loaded, attribute, None)) != entry.name:
        raise LucidError(f"{label} is no {what} of the name {entry.name}: its {attribute} is {own!r}.")
    return loaded


def _origin(entry: EntryPoint) -> str:
    return entry.value if entry.dist is None else f"{entry.dist.name} ({entry.value})"
