"""Standard softmax attention as a kind of layer: the cache holds keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind
from lucid_deploy.model.layers.rows import projection_names, rows_layout
from lucid_deploy.plugins.table import CAUSAL_ATTENTION

if TYPE_CHECKING:
    from lucid_deploy.model.mixer import Mixer


class _Standard(LayerKind):
    name = "standard"

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        return LayerDescription(
            kind=self.name,
            cache=rows_layout(config, cache_dtype),
            operators={"prefill": (CAUSAL_ATTENTION.name,)},
            weights=projection_names(config, self.attribute),
            eviction="keys and values of the later tokens were computed from them",
        )

    def words(self, config: LucidConfig) -> str:
        return "{} of standard attention"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        from lucid_deploy.model.attention.standard import StandardAttention

        return StandardAttention(config, implementation)


KIND = _Standard()
