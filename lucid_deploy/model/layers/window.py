"""Standard attention over the last W tokens as a kind of layer: its cache is a ring of W rows."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lucid_deploy.cache.layout import LayerLayout
from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind
from lucid_deploy.model.layers.rows import projection_names, rows_layout

if TYPE_CHECKING:
    from lucid_deploy.model.mixer import Mixer


def ring_layout(config: LucidConfig, cache_dtype: str) -> LayerLayout:
    """Return the cache of the layer: the rows of the last W tokens.

    Raises:
        LucidError: Their type is one that rings are not kept in.
    """
    if cache_dtype == "fp8":  # ONNX's Where, with which a ring moves, takes no E4M3
        raise LucidError(
            "Layers over a window of tokens keep no cache in fp8. Choose --cache-dtype int8 for them, or auto, the "
            "model's type."
        )
    rows = rows_layout(config, cache_dtype)
    return tuple(dataclasses.replace(tensor, sort="ring", window=config.sliding_window) for tensor in rows)


class _Window(LayerKind):
    name = "window"

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        return LayerDescription(
            kind=self.name,
            cache=ring_layout(config, cache_dtype),
            weights=projection_names(config, self.attribute),
            eviction="what lies before its window is dropped already",
        )

    def words(self, config: LucidConfig) -> str:
        return f"{{}} over the last {config.sliding_window} tokens"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        from lucid_deploy.model.attention.window import WindowAttention

        return WindowAttention(config, implementation)


KIND = _Window()
