"""Causal softmax attention of new tokens over a cache: LUCID's when the values are Y, standard when they are V."""

from lucid_deploy.plugins.causal_attention.torch_operator import causal_attention

__all__ = ["causal_attention"]
