"""Objects by name: our own, those that a program registers, and entry points of other installed packages."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint
from typing import Any, Generic, TypeVar

from lucid_deploy.errors import LucidError, in_one_line

T = TypeVar("T")


def entry_points(group: str) -> dict[str, list[EntryPoint]]:
    """Return, by name, the entry points that installed packages register in a group; none of them is loaded."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in importlib.metadata.entry_points(group=group):
        found.setdefault(entry.name, []).append(entry)
    return found


def load_plugin(group: str, name: str, kind: type[T], what: str, attribute: str = "name") -> T | None:
    """Load the object that an installed package registers under a name; None if no package does.

    Raises a LucidError if several do, or if the object does not load, is no ``kind`` or has another name.
    """
    found = entry_points(group).get(name, [])
    if not found:
        return None
    if len(found) > 1:
        raise LucidError(f"Several packages bring a {what} {name}: {', '.join(map(_origin, found))}. Remove one.")
    wanted: Any = kind  # may be abstract, which mypy does not take for type[T]
    loaded: T = _load(found[0], wanted, what, attribute)
    return loaded


@cache
def _load(entry: EntryPoint, kind: Any, what: str, attribute: str) -> Any:
    label = f"{what.capitalize()} {entry.name} of {_origin(entry)}"
    try:
        loaded: Any = entry.load()
    except Exception as error:  # a package's own code, which may raise anything: the message names the package
        reason = f"{type(error).__name__}: {in_one_line(error)}".removesuffix(".")
        raise LucidError(f"{label} does not load: {reason}. Install its package again, or remove it.") from error
    if not isinstance(loaded, kind) or getattr(loaded, attribute, None) != entry.name:
        wanted = f"an object of a subclass of {kind.__name__} whose {attribute} is {entry.name}"
        raise LucidError(f"{label} is no {what}: it must be {wanted}.")
    return loaded


class Registry(Generic[T]):
    """Objects of a class by name: the toolkit's own, those of installed packages, and those that a program registers.

    Args:
        group: The group of entry points in which packages register objects.
        kind: The class of the objects.
        what: The word for such objects in messages.
        built_in: By name, where each of the toolkit's own objects is: ``package.module.OBJECT``.
        attribute: The attribute that holds an object's name.
        needs: Attributes that an object must have, with their types.
    """

    def __init__(
        self,
        group: str,
        kind: type[T],
        what: str,
        built_in: Mapping[str, str],
        attribute: str = "name",
        needs: Mapping[str, type] | None = None,
    ) -> None:
        self._group, self._kind, self._what, self._built_in = group, kind, what, built_in
        self._attribute, self._needs = attribute, {attribute: str, **(needs or {})}
        self._registered: dict[str, T] = {}

    def register(self, item: T) -> None:
        """Register or replace an object; LucidError if its class or an attribute is wrong, or its name is built in."""
        self._check(item)
        name = getattr(item, self._attribute)
        if name in self._built_in:
            raise LucidError(
                f"The {self._what} {name!r} comes with lucid-deploy; give yours another {self._attribute}."
            )
        self._registered[name] = item

    def _check(self, item: T) -> None:
        what = self._what
        if not isinstance(item, self._kind):
            raise LucidError(f"A {what} is an object of a subclass of {self._kind.__name__}, not {item!r}.")
        for name, kind in self._needs.items():
            if not isinstance(getattr(item, name, None), kind):
                raise LucidError(f"{type(item).__name__} has no {name}, which a {what} must define ({kind.__name__}).")

    def names(self) -> tuple[str, ...]:
        """Return all names, those of the toolkit first, without importing any object."""
        return tuple(dict.fromkeys((*self._built_in, *self._registered, *sorted(entry_points(self._group)))))

    def find(self, name: str) -> T | None:
        """Return the object with a name; None if there is none. LucidError if a package's object cannot be used."""
        if name in self._built_in:
            module, _, attribute = self._built_in[name].rpartition(".")
            own: T = getattr(importlib.import_module(module), attribute)
            return own
        if name in self._registered:
            return self._registered[name]
        found = load_plugin(self._group, name, self._kind, self._what, self._attribute)
        if found is not None:
            self._check(found)
        return found

    def named(self, name: str) -> T:
        """Return the object with a name; raise a LucidError if there is none."""
        found = self.find(name)
        if found is None:
            raise LucidError(
                f"{self._what.capitalize()} {name!r} is not known; known are {', '.join(self.names())}. Install the "
                "package that defines it, or register it."
            )
        return found


def _origin(entry: EntryPoint) -> str:
    return entry.value if entry.dist is None else f"{entry.dist.name} ({entry.value})"
