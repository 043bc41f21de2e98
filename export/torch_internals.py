"""What lies inside PyTorch and may be elsewhere, or nowhere, in another version."""

from __future__ import annotations

import importlib
from typing import Any


def internal(module: str, name: str | None = None) -> Any:
    """Return a module, or an object in it; None where this version of PyTorch has none of that name."""
    try:
        found = importlib.import_module(module)
    except ImportError:
        return None
    return found if name is None else getattr(found, name, None)
