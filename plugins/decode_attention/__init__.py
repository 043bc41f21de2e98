"""Attention of one or a few new tokens over the cache, and their own preconditioned values, in one pass."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lucid_deploy.plugins.decode_attention.torch_operator import decode_attention

__all__ = ["decode_attention"]


def __getattr__(name: str) -> Any:
    if name != "decode_attention":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lucid_deploy.plugins.decode_attention import torch_operator  # the only part that needs PyTorch

    return torch_operator.decode_attention
