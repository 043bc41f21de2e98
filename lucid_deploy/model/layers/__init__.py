"""Kinds of layers: one file each, with its cache and everything else that only it knows.

Describing a layer imports no torch: a kind imports its PyTorch module (:mod:`lucid_deploy.model.attention` has ours)
when it is asked to make one.

A kind of one's own is a :class:`LayerKind` handed to :func:`register_layer_kind`, or named by an installed package
under the entry point group ``lucid_deploy.layers``.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from lucid_deploy.errors import LucidError
from lucid_deploy.plug import entry_points, plugged

if TYPE_CHECKING:
    from lucid_deploy.model.config import LucidConfig
    from lucid_deploy.model.description import LayerDescription
    from lucid_deploy.model.mixer import Mixer

GROUP = "lucid_deploy.layers"
_BUILT_IN = {  # name: module and object
    "lucid": ("lucid", "KIND"),
    "standard": ("standard", "KIND"),
    "window": ("window", "KIND"),
    "delta": ("delta", "DELTA"),
    "gated_delta": ("delta", "GATED_DELTA"),
}
_registered: dict[str, LayerKind] = {}


class LayerKind(ABC):
    """A kind of layer: what stands between the norm and the residual in place of attention.

    Attributes:
        name: What configurations call it.
        attribute: Name of the mixer within its layer, the beginning of its weights' names: ``self_attn``.
    """

    name: str
    attribute: str = "self_attn"

    @abstractmethod
    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        """Describe one layer of this kind.

        Args:
            config: The model.
            index: Which layer it is.
            cache_dtype: Type that rows are cached in: ``int8``, ``fp8``, ``float16`` or the model's.
        """

    def words(self, config: LucidConfig) -> str:
        """Say for people what such layers are, ``{}`` in the place of ``layers`` or ``layer``: ``{} of kind delta``."""
        return f"{{}} of kind {self.name}"

    @abstractmethod
    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        """Make the PyTorch module of one layer.

        Args:
            config: The model.
            index: Which layer it is.
            implementation: ``blocked`` or ``reference`` (readable formulas, for checking the other).
        """


def register_layer_kind(kind: LayerKind) -> None:
    """Make a kind of layer known by its name; a second one of that name takes its place.

    Raises:
        LucidError: The name is that of a kind that comes with the toolkit, or it is no object of a kind's class.
    """
    if not isinstance(kind, LayerKind):
        raise LucidError(f"A layer kind is an object of a subclass of LayerKind, not {kind!r}.")
    if not isinstance(getattr(kind, "name", None), str):
        raise LucidError(f"The layer kind {kind!r} has no name.")
    if kind.name in _BUILT_IN:
        raise LucidError(f"The layer kind {kind.name!r} comes with lucid-deploy; give yours another name.")
    _registered[kind.name] = kind


def layer_kind(name: str) -> LayerKind:
    """Return a kind of layer by its name.

    Raises:
        LucidError: There is none of that name, two packages bring one, or the package that brings it is broken.
    """
    if name in _BUILT_IN:
        module, attribute = _BUILT_IN[name]
        kind: LayerKind = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        return kind
    if name not in _registered:
        found = plugged(GROUP, name, LayerKind, "layer kind")  # type: ignore[type-abstract]
        if found is not None:
            register_layer_kind(found)
    if name not in _registered:
        known = ", ".join(dict.fromkeys([*_BUILT_IN, *_registered, *sorted(entry_points(GROUP))]))
        raise LucidError(
            f"Layers of kind {name!r} are not known; known are {known}. Install the package that defines them, or "
            "register them with lucid_deploy.model.layers.register_layer_kind."
        )
    return _registered[name]
