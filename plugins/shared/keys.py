"""Normalization of LUCID's keys, and the dtype in which operators compute."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which operators compute for inputs of ``dtype``: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def normalize_keys(k: Tensor, eps: float) -> Tensor:
    """Return K̂ = K / sqrt(mean(K²) + eps), with the shape and dtype of ``k``."""
    return k * torch.rsqrt(k.square().mean(-1, keepdim=True) + eps)


def log_row_factors(k: Tensor, eps: float) -> Tensor:
    """Return −log L_ii of the training diagonal, √D·eps/(mean(K²) + eps), ``(…, N, 1)``, for keys ``(…, N, D)``.

    Computing it as √D − K̂_i·K̂_i/√D would cancel: the difference of two large terms is small.
    """
    return math.sqrt(k.shape[-1]) * eps / (k.square().mean(-1, keepdim=True) + eps)
