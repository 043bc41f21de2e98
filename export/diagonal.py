"""What the diagonal of L costs: Y with 1 on it and Y with training's, on a checkpoint's own keys and values.

The authors' training code divides row i of the solve by L_ii = exp(√d(m/(m + eps) − 1)), m the mean square of key i;
with small keys that is noticeably below 1. Nothing in a checkpoint says with which it was trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lucid_deploy.model.attention.lucid import LucidAttention
from lucid_deploy.plugins.precondition.reference import precondition_reference
from lucid_deploy.plugins.shared.keys import log_row_factors

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.block import Layer
    from lucid_deploy.model.mixer import Step

TOKENS = 64  # of each prompt: since L is triangular, its leading block is the L of the leading tokens
ROUNDING = 2.0**-23  # of float32, relative: a smaller difference cannot be told from it


@dataclass
class DiagonalEffect:
    """The largest effect in any layer.

    Attributes:
        smallest: The smallest L_ii of training's diagonal.
        layer: Where it is.
        difference: Largest relative difference of a layer's Y, L2 over the tokens of a prompt.
    """

    smallest: float = 1.0
    layer: int = 0
    difference: float = 0.0

    def watch(self, layer: Layer, index: int) -> None:
        """Look at the keys and values of a layer; at none where it has no solve."""
        attention = layer.mixer
        if not isinstance(attention, LucidAttention):
            return
        project, eps = attention.project, attention.config.rms_norm_eps

        def projected(x: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            q, k, v = project(x, step)
            self._add(k[:, :, :TOKENS].double(), v[:, :, :TOKENS].double(), eps, index)
            return q, k, v

        attention.project = projected  # type: ignore[method-assign]

    def _add(self, k: torch.Tensor, v: torch.Tensor, eps: float, index: int) -> None:
        smallest = math.exp(-float(log_row_factors(k, eps).max()))
        if smallest < self.smallest:
            self.smallest, self.layer = smallest, index
        none = k[:, :, :0]
        one, other = (precondition_reference(k, v, none, none, None, eps, training) for training in (False, True))
        change = (other - one).norm() / one.norm().clamp_min(1e-300)
        self.difference = max(self.difference, float(change))

    @property
    def sentence(self) -> str:
        """What to tell someone whose artifact has 1 on the diagonal; empty where it makes no difference in float32."""
        if not self.difference > ROUNDING:
            return ""
        return (
            f"The diagonal of L is 1 in this artifact. The authors' training code divides by as little as "
            f"{self.smallest:.6g} (layer {self.layer}), which changes Y by up to {self.difference:.2g} of its size on "
            "sample prompts: if the checkpoint was trained with it, export with --diagonal training."
        )
