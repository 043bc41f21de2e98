"""Ablations: the same weights in a model without one of its parts.

An ablated model is another configuration, with layers of other kinds; only the PyTorch runtime runs it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind, register_layer_kind
from lucid_deploy.model.layers.attention import projection_names, rows_layout

if TYPE_CHECKING:
    from lucid_deploy.model.mixer import Mixer

LUCID, STANDARD, RAW_KEYS = "lucid", "standard", "lucid_raw_keys"
ABLATIONS = {"preconditioner": STANDARD, "keys": RAW_KEYS}


class RawKeys(LayerKind):
    """LUCID attention whose solve uses keys without normalization, see :mod:`lucid_deploy.model.attention.raw_keys`."""

    name = RAW_KEYS

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        return LayerDescription(  # solves stays False: its system is not LUCID's
            kind=self.name,
            cache=rows_layout(config, index, cache_dtype),
            weights=projection_names(config, index, self.attribute),
            eviction="what is cached for the later tokens was computed from their keys and values",
        )

    def words(self, config: LucidConfig) -> str:
        return "LUCID {} without normalized keys"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        from lucid_deploy.model.attention.raw_keys import RawKeyAttention

        return RawKeyAttention(config.of_layer(index), implementation)


def ablated(config: LucidConfig, part: str) -> LucidConfig:
    """Return a model's configuration without one part of its LUCID layers; other layers stay as they are.

    Args:
        config: The model.
        part: ``preconditioner``: Y = V, which is standard attention with the same weights. ``keys``: the solve takes
            keys that are not normalized.

    Raises:
        LucidError: Another part, or a model without LUCID layers.
    """
    if part not in ABLATIONS:
        raise LucidError(f"There is no ablation of {part!r}; there are {', '.join(ABLATIONS)}.")
    if LUCID not in config.kinds:
        raise LucidError(f"The model has no LUCID layers, so it can't be run without their {part}.")
    register_layer_kind(RawKeys())
    return replace(config, layer_kinds=tuple(ABLATIONS[part] if kind == LUCID else kind for kind in config.kinds))
