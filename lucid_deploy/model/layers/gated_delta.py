"""The gated delta rule as a kind of layer: as :mod:`~lucid_deploy.model.layers.delta`, with a state that decays."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.layers.delta import DeltaKind
from lucid_deploy.model.layers.delta_settings import delta_settings

if TYPE_CHECKING:
    from lucid_deploy.model.mixer import Mixer


class _GatedDelta(DeltaKind):
    name = "gated_delta"
    decays = True

    def words(self, config: LucidConfig) -> str:
        """See :meth:`LayerKind.words`."""
        return "{} of the gated delta rule"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        """See :meth:`LayerKind.mixer`."""
        from lucid_deploy.model.attention.delta_net import GatedDeltaNet

        return GatedDeltaNet(config, delta_settings(config, self.name), implementation)


KIND = _GatedDelta()
