"""Attention of one or a few new tokens over the cache, and their own preconditioned values, in one pass."""

from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention

__all__ = ["decode_attention"]
