"""LUCID attention as a kind of layer: the cache holds raw keys and preconditioned values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind
from lucid_deploy.model.layers.rows import projection_names, rows_layout
from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DECODE_ATTENTION, PRECONDITION

if TYPE_CHECKING:
    from lucid_deploy.model.mixer import Mixer


class _Lucid(LayerKind):
    name = "lucid"

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        return LayerDescription(
            kind=self.name,
            cache=rows_layout(config, cache_dtype),
            operators={"prefill": (PRECONDITION.name, CAUSAL_ATTENTION.name), "decode": (DECODE_ATTENTION.name,)},
            weights=projection_names(config, self.attribute),
            solves=True,
            diagonal=config.diagonal,
            eviction="with LUCID attention, Y of every later token was computed from their keys and values, so the "
            "rest would not be the cache of the remaining text",
        )

    def words(self, config: LucidConfig) -> str:
        return "LUCID {}"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        from lucid_deploy.model.attention.lucid import LucidAttention

        return LucidAttention(config, implementation)


KIND = _Lucid()
