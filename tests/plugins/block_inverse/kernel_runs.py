"""What runs inside of an interpreter's process: the device function, and its error against float64."""

from __future__ import annotations

import torch

from lucid_deploy.plugins.block_inverse.reference import merge_masks
from tests.plugins.block_inverse.blocks import blocks, exact_inverse
from tests.plugins.problems import relative


def round_to_16_bits(x: torch.Tensor) -> torch.Tensor:
    """Round float32 to 16 significant bits, which is what two bfloat16 parts hold together."""
    return ((x.contiguous().view(torch.int32) + 0x80) & ~0xFF).view(torch.float32)


def plain_inverse(x: torch.Tensor, precision: str) -> torch.Tensor:
    """Merge in float32, with the operands of products as exact as the kernel's must be."""
    rounded = round_to_16_bits if precision == "bf16x3" else torch.Tensor.clone
    inverse = torch.eye(x.shape[-1]).expand_as(x)
    for mask in merge_masks(x.shape[-1]):
        between = rounded(rounded(inverse) @ rounded(mask * x))
        inverse = inverse - between @ rounded(inverse)
    return inverse


def run_inverse(size: int, correlation: float, precision: str) -> dict[str, float]:
    """Return the relative errors of the kernel and of a plain implementation in PyTorch."""
    from tests.plugins.block_inverse.inverse_kernel import invert_kernel

    x = blocks(size, correlation).float().contiguous()
    found = torch.full_like(x, torch.nan)
    invert_kernel[(x.shape[0] * x.shape[1],)](x, found, BLOCK=size, PRECISION=precision)
    exact = exact_inverse(x.double())
    return {"error": relative(found, exact), "plain": relative(plain_inverse(x, precision), exact)}
