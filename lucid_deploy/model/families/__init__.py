"""Model families: how their ``config.json``, tensors and layers differ from Llama's.

To add a family, pass a :class:`Family` to :func:`register_family`, or name it in an installed package under the entry
point group ``lucid_deploy.families`` by its ``model_type``.
"""

from __future__ import annotations

from typing import Any

from lucid_deploy.model.families.family import Family, NoKeys, StoredParameter
from lucid_deploy.plug import Registry

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

BUILT_IN = {
    "llama": f"{__name__}.family.LLAMA",
    "delta_net": f"{__name__}.flash_linear.DELTA_NET",
    "gated_deltanet": f"{__name__}.flash_linear.GATED_DELTANET",
}
_REGISTRY = Registry("lucid_deploy.families", Family, "family", BUILT_IN, "model_type", {"architectures": tuple})
register_family, family_named = _REGISTRY.register, _REGISTRY.named
families = _REGISTRY.names  # the model_type of every family, built-in ones first, without importing them


def family_of(raw: dict[str, Any]) -> Family | None:
    """Return the family of a ``config.json``; None for an unknown ``model_type``.

    Without ``model_type`` it is the first family with a class in ``architectures``, or Llama if there is none.
    """
    kind = raw.get("model_type")
    if kind is not None:
        return _REGISTRY.find(kind) if isinstance(kind, str) else None
    named = raw.get("architectures")
    for model_type in families():
        family = family_named(model_type)
        if isinstance(named, list) and set(named) & set(family.architectures):
            return family
    return family_named("llama")
