"""Attention of one new token over the cache, and its own preconditioned value, in one pass."""

from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention

__all__ = ["decode_attention"]
