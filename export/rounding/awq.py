"""AWQ: scale up the inputs that matter before rounding to nearest, so that less is lost of what they are multiplied by.

Column i of a weight is multiplied by s_i = mean|x_i|^α, and its input divided by it; α is the one of twenty with which
the products lose least over the text (Lin, Tang, Tang, Yang, Dang, Han, "AWQ", arXiv 2306.00978, section 3.2; constants
are those of the authors' code, llm-awq). Where the division goes is :mod:`lucid_deploy.export.rounding.folding`'s
business; it never goes into K, so that the solve sees the keys that it was trained with. Then the scale of every block
is the one that loses least over the text: the authors' search for clipping, with the candidates that GPTQ has here.

Two things differ from the authors' code. Losses are those of the products that read an input, each as a share of its
own size, where they take the outputs of attention and of the MLP as a whole. And the scales of q and k are searched as
well, which they leave as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lucid_deploy.artifact.quantized_tensor import QuantizedTensor
from lucid_deploy.export.rounding.scales import number_range, search_scales

if TYPE_CHECKING:
    import torch

GRID = 20  # values of α: 0, 0.05, … 0.95; with 0 nothing is scaled
_LEAST = 1e-4  # of a scale, before they are made to lie around 1
_DAMPING = 1e-4  # of the mean second moment: inputs that were always zero lose nothing, whatever they are multiplied by


@dataclass(frozen=True)
class Target:
    """How a weight is to be rounded.

    Attributes:
        tensor: Its shape and blocks.
        bits: 4 or 8.
        dtype: Type that scales are stored in.
        positive: Whether scales must be positive.
    """

    tensor: QuantizedTensor
    bits: int
    dtype: str
    positive: bool


@dataclass
class InputSizes:
    """What a layer's input is over a text: its second moments mean(x xᵀ), ``(in, in)``, and mean |x|, ``(in,)``."""

    x_x: torch.Tensor
    magnitude: torch.Tensor


def input_sizes(batches: Iterable[Sequence[torch.Tensor]], inputs: int) -> list[InputSizes]:
    """Add up what several products read.

    Args:
        batches: For some rows after the other, each product's input ``(…, in)``.
        inputs: How many products there are.

    Returns:
        Sizes of each product's input, float32; the sums are float64.
    """
    import torch

    zero = torch.zeros((), dtype=torch.float64)
    found, count = [(zero, zero) for _ in range(inputs)], 0
    for given in batches:
        rows = [x.reshape(-1, x.shape[-1]) for x in given]
        count += len(rows[0]) if rows else 0
        found = [(a + x.mT @ x, b + x.abs().sum(dim=0)) for (a, b), x in zip(found, rows, strict=True)]
    return [InputSizes((a / count).float(), (b / count).float()) for a, b in found]


def input_scale(sizes: InputSizes, weights: list[tuple[torch.Tensor, Target]]) -> torch.Tensor:
    """Return the scale s of an input, ``(in,)``, with which the products that read it lose least.

    Args:
        sizes: Of the input.
        weights: Of those products, float32 ``(out, in)``.
    """
    import torch

    best, least = torch.ones_like(sizes.magnitude), torch.inf
    whole = [_lost(weight, sizes.x_x) for weight, _ in weights]
    for step in range(GRID):
        scale = sizes.magnitude.pow(step / GRID).clamp(min=_LEAST)
        scale = scale / (scale.max() * scale.min()).sqrt()
        lost = 0.0
        for (weight, target), size in zip(weights, whole, strict=True):
            changed = weight * scale
            error = rounded(changed, nearest_scales(changed, target), target)[1].div_(scale).sub_(weight)
            lost += _lost(error, sizes.x_x) / size if size > 0 else 0.0
        if lost < least:
            best, least = scale, lost
    return best


def nearest_scales(weight: torch.Tensor, target: Target) -> torch.Tensor:
    """Return scales at which each block's largest element just fits, ``(out, blocks)``."""
    return search_scales(weight, target.tensor, target.bits, target.dtype, target.positive, widths=(1.0,))


def clipped_scales(weight: torch.Tensor, target: Target, x_x: torch.Tensor) -> torch.Tensor:
    """Return scales that lose least of a block's share in the outputs, ``(out, blocks)``.

    Args:
        weight: ``(out, in)``.
        target: How it is to be rounded.
        x_x: mean(x xᵀ) of what it is multiplied by, ``(in, in)``.
    """
    import torch

    size, missing = target.tensor.block_size, -len(x_x) % target.tensor.block_size
    damped = x_x + torch.eye(len(x_x)) * (_DAMPING * x_x.diagonal().mean() or 1.0)
    damped = torch.nn.functional.pad(damped, (0, missing, 0, missing))
    blocks = torch.stack([damped[i : i + size, i : i + size] for i in range(0, len(damped), size)])
    return search_scales(weight, target.tensor, target.bits, target.dtype, target.positive, moments=blocks)


def rounded(weight: torch.Tensor, scales: torch.Tensor, target: Target) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the whole numbers nearest to a weight, int8 ``(out, in)``, and what they stand for."""
    import torch

    spread = scales.repeat_interleave(target.tensor.block_size, dim=1)[:, : weight.shape[1]]
    numbers = (weight / spread).round_().clamp_(*number_range(target.bits, target.positive))
    return numbers.to(torch.int8), numbers * spread


def _lost(error: torch.Tensor, x_x: torch.Tensor) -> float:
    """Return mean‖E x‖², which is tr(E mean(x xᵀ) Eᵀ)."""
    import torch

    return float(torch.linalg.vecdot(error @ x_x, error).sum(dtype=torch.float64))
