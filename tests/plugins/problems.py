"""Correlated keys, on which a wrong solve shows, and relative errors."""

from __future__ import annotations

import math

import torch


def keys(correlation: float, *shape: int, seed: int = 0) -> torch.Tensor:
    """Keys that share a common vector, float64; correlation 1 is one token repeated."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(shape[-1], generator=generator, dtype=torch.float64)
    own = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())
