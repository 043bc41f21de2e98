"""Rotary positions: frequencies, tables and the rotation, as transformers computes them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lucid_deploy.model.config import Rope, RopeScaling


def inverse_frequencies(rope: Rope, width: int) -> Tensor:
    """Return the rotary frequencies in radians per token, float32 ``(width/2,)``, scaled as the configuration says.

    They are float32 in every model: checkpoints were trained with float32 frequencies, and a float64 model must rotate
    by the same angles. ``llama3`` is Llama 3.1's scaling: wavelengths longer than the original context divided by
    ``low_freq_factor`` are multiplied by ``factor``, those shorter than the context divided by ``high_freq_factor`` are
    kept, with a linear ramp in between.
    """
    scaling = rope.scaling
    frequencies = rope.theta ** -(torch.arange(0, width, 2, dtype=torch.float64, device="cpu") / width)
    if scaling.rope_type == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.rope_type == "llama3":
        frequencies = _llama3(frequencies, scaling)
    return frequencies.float()


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)  # over the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0: divided by factor, 1: kept
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rope_tables(rope: Rope, width: int, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin for rotary embedding, ``(B, 1, N, width/2)`` each; float64 if ``dtype`` is, else float32."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = inverse_frequencies(rope, width).to(dtype=work, device=position_ids.device)
    angles = position_ids.to(work)[:, None, :, None] * frequencies  # (B, 1, N, D/2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate features i and i + D/2 of each head, ``(B, H, N, D)``, in the tables' type; return the type of ``x``."""
    a, b = x.to(cos.dtype).split(cos.shape[-1], dim=-1)  # (B, H, N, D/2) each
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
