"""Rotary positions: frequencies, tables and the rotation, as transformers computes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lucid_deploy.model.config import Rope, RopeScaling


def inverse_frequencies(rope: Rope, width: int) -> Tensor:
    """Return the rotary frequencies in radians per token, float32 ``(D/2,)``, scaled as the configuration says.

    Float32 in every model, since that is what checkpoints were trained with: a float64 model must rotate by the same
    angles. ``llama3`` scaling is that of Llama 3.1: wavelengths longer than the original context divided by
    ``low_freq_factor`` are stretched by ``factor``, those shorter than it divided by ``high_freq_factor`` are kept, and
    between them runs a linear ramp. ``yarn`` (arXiv 2309.00071) has its ramp over the index of the frequency.
    """
    scaling = rope.scaling
    frequencies = rope.theta ** -(torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    if scaling.rope_type == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.rope_type == "llama3":
        frequencies = _llama3(frequencies, scaling)
    elif scaling.rope_type == "yarn":
        frequencies = _yarn(frequencies, rope, width)
    return frequencies.float()


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)  # over the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0: divided by factor, 1: kept
    return frequencies * (keep + (1 - keep) / scaling.factor)


def _yarn(frequencies: Tensor, rope: Rope, width: int) -> Tensor:
    scaling = rope.scaling

    def index_of(turns: float) -> float:
        """Which frequency turns so often over the original context."""
        length = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return width * math.log(length) / (2 * math.log(rope.theta))

    first, last = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001  # as transformers has it: a step instead of a ramp
    index = torch.arange(width // 2, dtype=torch.float64, device="cpu")
    stretch = ((index - first) / (last - first)).clamp(0, 1)  # 0: kept, 1: divided by factor
    return frequencies * (1 - stretch + stretch / scaling.factor)


def rope_tables(rope: Rope, width: int, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin for rotary embedding, ``(B, 1, N, D/2)`` each, computed in float32 at least."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = inverse_frequencies(rope, width).to(dtype=work, device=position_ids.device)
    angles = position_ids.to(work)[:, None, :, None] * frequencies  # (B, 1, N, D/2)
    if rope.scaling.attention_factor == 1:
        return angles.cos(), angles.sin()
    return angles.cos() * rope.scaling.attention_factor, angles.sin() * rope.scaling.attention_factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head, ``(B, H, N, D)``, in the tables' precision; result in the type of ``x``."""
    a, b = x.to(cos.dtype).split(cos.shape[-1], dim=-1)  # (B, H, N, D/2) each
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
