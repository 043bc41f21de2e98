"""What installed packages add: objects named under an entry point group."""

from __future__ import annotations

import importlib.metadata
from typing import Any


def entry_points(group: str, name: str | None = None) -> list[Any]:
    """Load what installed packages name under a group.

    Args:
        group: Such as ``lucid_deploy.runtimes``.
        name: Only entries of this name; None: all.
    """
    found = importlib.metadata.entry_points(group=group)
    return [entry.load() for entry in found if name is None or entry.name == name]
