"""Modules that all models use: RMS norm, feed-forward layer, output projection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.plugins.shared.keys import compute_dtype

_LARGEST_EXPONENT = 80.0  # exp(80) is finite in float32, and so is silu's derivative; silu(−80) is −1e-33


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, computed in float32 for half-precision x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis; return the shape and type of ``x``."""
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


def precise_silu(x: Tensor) -> Tensor:
    """Return x / (1 + exp(−x)) of float32 or float64 x, precise even for small results, which a norm may scale up.

    F.silu exports as Sigmoid, whose CPU kernel in onnxruntime is precise only for results near 1: its relative error is
    2e-4 at −8 and 1e-2 at −12, and below −18 its result is constant. Exp has an error of 1e-7 everywhere.
    """
    return x / (1 + (-x).clamp_max(_LARGEST_EXPONENT).exp())


class MLP(nn.Module):
    """The gated feed-forward layer: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: LucidConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to each token of ``x``, ``(B, N, C)``; return the shape and type of ``x``."""
        work = compute_dtype(x.dtype)  # float32 at least, because silu takes an exponential
        product = F.silu(self.gate_proj(x).to(work)) * self.up_proj(x).to(work)  # (B, N, inner)
        return self.down_proj(product.to(x.dtype))


class Head(nn.Linear):
    """The output projection to the vocabulary: logits in float32, or in float64 in a float64 model.

    Attributes:
        in_float32: Whether the head of a half-precision model multiplies in float32. Logits are often above 8 in
            magnitude, where bfloat16 has steps of 1/16 or more, so that top logits would tie. If False, for a
            quantized head, it multiplies in the model's type and casts the result.
    """

    def __init__(self, width: int, vocab_size: int, bias: bool = False) -> None:
        super().__init__(width, vocab_size, bias)
        self.in_float32 = True

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits ``(…, vocab)`` of hidden states ``(…, width)``, which have the model's type."""
        if self.weight.dtype == torch.float64:
            return super().forward(input)
        if self.in_float32:
            bias = None if self.bias is None else self.bias.float()
            return F.linear(input.float(), self.weight.float(), bias)
        return super().forward(input).float()
