"""Kinds of layers: the cache of each, its operators and weights, and its PyTorch module.

Describing a layer imports no torch: a kind imports its PyTorch module from :mod:`lucid_deploy.model.attention` in
:meth:`LayerKind.mixer`.

To add a kind, pass a :class:`LayerKind` to :func:`register_layer_kind`, or name it in an installed package
under the entry point group ``lucid_deploy.layers``.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from lucid_deploy.errors import LucidError
from lucid_deploy.plug import entry_points, load_plugin

if TYPE_CHECKING:
    from lucid_deploy.model.config import LucidConfig
    from lucid_deploy.model.description import LayerDescription
    from lucid_deploy.model.mixer import Mixer

GROUP = "lucid_deploy.layers"
_BUILT_IN = {  # name: module and object
    "lucid": ("attention", "LUCID"),
    "standard": ("attention", "STANDARD"),
    "window": ("attention", "WINDOW"),
    "delta": ("delta", "DELTA"),
    "gated_delta": ("delta", "GATED_DELTA"),
}
_registered: dict[str, LayerKind] = {}


class LayerKind(ABC):
    """A kind of layer: the module between the norm and the residual, such as attention."""

    name: str  # its name in configurations
    attribute: str = "self_attn"  # name of the mixer within its layer, the prefix of its weights' names

    @abstractmethod
    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        """Describe one layer; rows are cached as ``int8``, ``fp8``, ``float16`` or in the model's type."""

    def words(self, config: LucidConfig) -> str:
        """Describe such layers for people, with ``{}`` for ``layers`` or ``layer``: ``{} of kind delta``."""
        return f"{{}} of kind {self.name}"

    @abstractmethod
    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        """Make the PyTorch module of one layer."""


def register_layer_kind(kind: LayerKind) -> None:
    """Register a kind of layer by its name; a second one of that name replaces the first."""
    if not isinstance(kind, LayerKind):
        raise LucidError(f"A layer kind is an object of a subclass of LayerKind, not {kind!r}.")
    if not isinstance(getattr(kind, "name", None), str):
        raise LucidError(f"The layer kind {kind!r} has no name.")
    if kind.name in _BUILT_IN:
        raise LucidError(f"The layer kind {kind.name!r} comes with lucid-deploy; give yours another name.")
    _registered[kind.name] = kind


def layer_kind(name: str) -> LayerKind:
    """Return a kind of layer by its name."""
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        kind: LayerKind = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        return kind
    if name not in _registered:
        found = load_plugin(GROUP, name, LayerKind, "layer kind")  # type: ignore[type-abstract]
        if found is not None:
            register_layer_kind(found)
    if name not in _registered:
        known = ", ".join(dict.fromkeys([*_BUILT_IN, *_registered, *sorted(entry_points(GROUP))]))
        raise LucidError(
            f"Layers of kind {name!r} are not known; known are {known}. Install the package that defines them, or "
            "register them with lucid_deploy.model.layers.register_layer_kind."
        )
    return _registered[name]
