"""A transformer layer: norms and residuals around a mixer and an MLP."""

from __future__ import annotations

from torch import Tensor, nn

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.families import family_named
from lucid_deploy.model.layers import layer_kind
from lucid_deploy.model.mixer import LayerCache, Mixer, Step
from lucid_deploy.model.parts import MLP, RMSNorm


class Layer(nn.Module):
    """A transformer layer: a mixer (attention) and an MLP, each with a norm before it and a residual."""

    def __init__(self, config: LucidConfig, index: int, implementation: str) -> None:
        super().__init__()
        kind = layer_kind(config.kinds[index])
        self._attribute = kind.attribute
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.add_module(kind.attribute, kind.mixer(config, index, implementation))
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp: nn.Module = MLP(config)

    @property
    def mixer(self) -> Mixer:
        """The module that mixes tokens, such as attention."""
        mixer = self.get_submodule(self._attribute)
        assert isinstance(mixer, Mixer)
        return mixer

    def forward(self, x: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        """Return the layer's output for tokens ``(B, N, C)``, of the same shape, and its updated cache."""
        mixed, present = self.mixer(self.input_layernorm(x), step, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), present


def make_layer(config: LucidConfig, index: int, implementation: str) -> Layer:
    """Make a layer as the model's family defines it; the arguments are those of :meth:`Family.layer`."""
    own = family_named(config.family).layer(config, index, implementation)
    return Layer(config, index, implementation) if own is None else own
