"""Choose each block's scale by the error that it leaves, not by its largest element alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lucid_deploy.artifact.quantization import LEAST_SCALE, QuantizedTensor

if TYPE_CHECKING:
    import torch

# Candidates, as factors of the scale at which the block's largest element just fits.
NARROWEST, WIDEST, CANDIDATES = 0.6, 1.2, 31
_ELEMENTS = 1 << 17  # of a matrix looked at together: what the second level of caches holds, with its copies


def number_range(bits: int, positive: bool) -> tuple[int, int]:
    """Return the least and the greatest whole number of a scheme."""
    high = (1 << (bits - 1)) - 1
    return (-high if positive else -high - 1), high


def search_scales(
    weight: torch.Tensor,
    tensor: QuantizedTensor,
    bits: int,
    dtype: str,
    positive: bool = False,
    moments: torch.Tensor | None = None,
    widths: Sequence[float] | None = None,
) -> torch.Tensor:
    """Return the scale of every block that leaves the least squared error of the weight, or of its products.

    Args:
        weight: Float32 or float64 ``(out, in)``.
        dtype: Type that scales are stored in; the result is of the weight's type, rounded to it.
        positive: Whether scales must be positive. Otherwise both signs are tried: the range of whole numbers has one
            more on the negative side.
        moments: mean(x xᵀ) of a block's inputs, ``(blocks, block_size, block_size)``: the error of the block's products
            with them is what counts; None: that of the weight.
        widths: Candidates, as factors of the scale at which the block's largest element just fits; None: all of them.

    Returns:
        ``(out, blocks)``, never zero.
    """
    import torch

    step = max(_ELEMENTS // weight.shape[1], 1)
    found = torch.cat([_best(rows, tensor, bits, positive, moments, widths) for rows in weight.split(step)])
    stored = found.to(getattr(torch, dtype)).to(weight.dtype)
    least = LEAST_SCALE[dtype]
    return torch.where(stored.abs() < least, torch.full_like(stored, least), stored)


def _best(
    rows: torch.Tensor,
    tensor: QuantizedTensor,
    bits: int,
    positive: bool,
    moments: torch.Tensor | None,
    widths: Sequence[float] | None,
) -> torch.Tensor:
    import torch

    low, high = number_range(bits, positive)
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[1] % tensor.block_size))
    blocks = padded.unflatten(1, (tensor.blocks, -1))  # (rows, blocks, block)
    fits = blocks.abs().amax(dim=-1, keepdim=True) / (high if positive else -low)
    best, least = fits, torch.full_like(fits, torch.inf)
    nearest, numbers = torch.empty_like(blocks), torch.empty_like(blocks)
    for factor in widths or torch.linspace(NARROWEST, WIDEST, CANDIDATES).tolist():
        scale = fits * factor
        torch.div(blocks, scale, out=nearest).round_()
        for sign in (1,) if positive else (1, -1):  # −s: the same numbers with the other sign, but for the range
            torch.clamp(nearest, *sorted((sign * low, sign * high)), out=numbers)
            error = _lost(numbers.mul_(scale).sub_(blocks), moments)
            better = error < least  # never where the block is zero: then it is NaN
            best, least = torch.where(better, sign * scale, best), torch.where(better, error, least)
    return best[..., 0]


def _lost(error: torch.Tensor, moments: torch.Tensor | None) -> torch.Tensor:
    """Return a block's squared error, or that of its products; ``(rows, blocks, 1)`` of ``(rows, blocks, block)``."""
    if moments is None:
        return error.square_().sum(dim=-1, keepdim=True)
    products = (error.transpose(0, 1) @ moments).transpose(0, 1)  # (rows, blocks, block)
    return products.mul_(error).sum(dim=-1, keepdim=True)
