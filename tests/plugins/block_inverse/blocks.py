"""Blocks of L whose inverses are tested."""

from __future__ import annotations

import math

import torch

from lucid_deploy.plugins.shared.keys import normalize_keys
from tests.plugins.problems import keys


def blocks(size: int, correlation: float, width: int = 64) -> torch.Tensor:
    """Return the strictly lower part of L for six blocks of keys, float64 ``(2, 3, size, size)``."""
    k_hat = normalize_keys(keys(correlation, 2, 3, size, width), 1e-5)
    return torch.exp(k_hat @ k_hat.mT / math.sqrt(width) - math.sqrt(width)).tril(-1)


def exact_inverse(x: torch.Tensor) -> torch.Tensor:
    """Return ``(I + X)⁻¹`` by a triangular solve, in the type of ``x``."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype).expand_as(x)
    return torch.linalg.solve_triangular(x + eye, eye, upper=False, unitriangular=True)
