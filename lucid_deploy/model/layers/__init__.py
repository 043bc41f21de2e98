"""Kinds of layers: their caches, operators, weights and PyTorch modules.

Describing a layer does not import torch: only :meth:`LayerKind.mixer` imports the PyTorch module, from
:mod:`lucid_deploy.model.attention`.

To add a kind, pass a :class:`LayerKind` to :func:`register_layer_kind`, or name it in an installed package
under the entry point group ``lucid_deploy.layers``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from lucid_deploy.plug import Registry

if TYPE_CHECKING:
    from lucid_deploy.model.config import LucidConfig
    from lucid_deploy.model.description import LayerDescription
    from lucid_deploy.model.mixer import Mixer


class LayerKind(ABC):
    """A kind of layer: the module between the norm and the residual, such as attention."""

    name: str  # its name in configurations
    attribute: str = "self_attn"  # name of the mixer within its layer, the prefix of its weights' names

    @abstractmethod
    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        """Describe one layer; ``cache_dtype``: ``int8``, ``fp8`` or a float type, such as the model's."""

    def words(self, config: LucidConfig) -> str:
        """Return a phrase for such layers, such as ``LUCID {}``; ``{}`` is replaced by ``layer`` or ``layers``."""
        return f"{{}} of kind {self.name}"

    @abstractmethod
    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        """Make the PyTorch module that mixes tokens in one layer, such as attention."""


_REGISTRY = Registry(
    "lucid_deploy.layers",
    LayerKind,  # type: ignore[type-abstract]
    "layer kind",
    {
        "lucid": f"{__name__}.attention.LUCID",
        "standard": f"{__name__}.attention.STANDARD",
        "window": f"{__name__}.attention.WINDOW",
        "delta": f"{__name__}.delta.DELTA",
        "gated_delta": f"{__name__}.delta.GATED_DELTA",
    },
)
register_layer_kind, layer_kind = _REGISTRY.register, _REGISTRY.named
