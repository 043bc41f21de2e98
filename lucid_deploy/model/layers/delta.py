"""Kinds of DeltaNet layers: their cache is a state of fixed size, and the last inputs of the convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind
from lucid_deploy.model.layers.delta_settings import delta_settings, state_layout, weight_names
from lucid_deploy.plugins.table import DELTA_RULE

if TYPE_CHECKING:
    from lucid_deploy.model.mixer import Mixer


class DeltaKind(LayerKind):
    """DeltaNet layers; the subclass for gated DeltaNet adds the decay of the state."""

    name = "delta"
    attribute = "linear_attn"
    decays = False  # whether the state decays

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        settings = delta_settings(config, self.name)
        return LayerDescription(
            kind=self.name,
            cache=state_layout(settings, config.state_dtype, cache_dtype),
            operators={stage: (DELTA_RULE.name,) for stage in ("prefill", "decode")},
            weights=config.attention[index].weights
            if config.attention
            else weight_names(settings, self.attribute, decays=self.decays),
            eviction="every token is mixed into a layer's state, and cannot be removed again",
        )

    def words(self, config: LucidConfig) -> str:
        return "{} of the delta rule"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        from lucid_deploy.model.attention.delta_net import DeltaNet

        return DeltaNet(config, delta_settings(config, self.name), implementation)


class _GatedDelta(DeltaKind):
    name = "gated_delta"
    decays = True

    def words(self, config: LucidConfig) -> str:
        return "{} of the gated delta rule"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        from lucid_deploy.model.attention.delta_net import GatedDeltaNet

        return GatedDeltaNet(config, delta_settings(config, self.name), implementation)


DELTA, GATED_DELTA = DeltaKind(), _GatedDelta()
