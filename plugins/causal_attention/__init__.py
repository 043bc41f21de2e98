"""Causal softmax attention of new tokens over a cache: LUCID's when the values are Y, standard when they are V."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention

__all__ = ["causal_attention"]


def __getattr__(name: str) -> Any:
    if name != "causal_attention":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lucid_deploy.plugins.causal_attention import torch_operator  # the only part that needs PyTorch

    return torch_operator.causal_attention
