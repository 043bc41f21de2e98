"""Families of models: the differences of their ``config.json``, tensors and layers from Llama's.

To add a family, pass a :class:`Family` to :func:`register_family`, or name it in an installed package under the entry
point group ``lucid_deploy.families`` by its ``model_type``.
"""

from __future__ import annotations

import importlib
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.model.families.family import Family, NoKeys, StoredParameter
from lucid_deploy.plug import entry_points, load_plugin

__all__ = [
    "BUILT_IN",
    "Family",
    "NoKeys",
    "StoredParameter",
    "families",
    "family_named",
    "family_of",
    "register_family",
]

GROUP = "lucid_deploy.families"
BUILT_IN = {  # model_type: module and object
    "llama": ("family", "LLAMA"),
    "delta_net": ("flash_linear", "DELTA_NET"),
    "gated_deltanet": ("flash_linear", "GATED_DELTANET"),
}
_registered: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Register a family by its ``model_type``; a second one of that name replaces the first."""
    if not isinstance(family, Family):
        raise LucidError(f"A family is an object of a subclass of Family, not {family!r}.")
    for name, kind in (("model_type", str), ("architectures", tuple)):
        if not isinstance(getattr(family, name, None), kind):
            raise LucidError(f"{type(family).__name__} has no {name}, which a family must say ({kind.__name__}).")
    if family.model_type in BUILT_IN:
        raise LucidError(f"The family {family.model_type!r} comes with lucid-deploy; give yours another model_type.")
    _registered[family.model_type] = family


def family_named(model_type: str) -> Family:
    """Return the family of a ``model_type``."""
    found = _find(model_type)
    if found is None:
        raise LucidError(
            f"Models of the family {model_type!r} are not known; known are {', '.join(families())}. Install the "
            "package that defines them, or register them with lucid_deploy.model.families.register_family."
        )
    return found


def families() -> tuple[str, ...]:
    """Return the ``model_type`` of every family, built-in ones first, without importing them."""
    return tuple(dict.fromkeys((*BUILT_IN, *_registered, *sorted(entry_points(GROUP)))))


def family_of(raw: dict[str, Any]) -> Family | None:
    """Return the family of a ``config.json``; None for an unknown ``model_type``.

    Without ``model_type`` it is the family of the class in ``architectures``, and without both it is Llama.
    """
    kind = raw.get("model_type")
    if kind is not None:
        return _find(kind) if isinstance(kind, str) else None
    named = raw.get("architectures")
    for model_type in families():
        family = family_named(model_type)
        if isinstance(named, list) and set(named) & set(family.architectures):
            return family
    return family_named("llama")


def _find(model_type: str) -> Family | None:
    if model_type in BUILT_IN:
        module, attribute = BUILT_IN[model_type]
        family: Family = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        return family
    if model_type not in _registered:
        found = load_plugin(GROUP, model_type, Family, "family", "model_type")
        if found is not None:
            register_family(found)
    return _registered.get(model_type)
