"""Round weights to E4M3 and NVFP4, with the scales that NVIDIA's ModelOpt gives them.

ModelOpt's formulas: ``FP8QTensor`` and ``NVFP4QTensor`` in ``modelopt/torch/quantization/qtensor``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lucid_deploy.artifact.float_formats import E2M1, E2M1_MAX, E4M3_LEAST, E4M3_MAX, NVFP4_BLOCK, NVFP4_SPAN

Codes = NDArray[np.uint8]
_LEAST = 2.0**-126  # the smallest normal number of float32: a scale that nothing is divided by in vain
_MIDDLES = torch.from_numpy((E2M1[:7] + E2M1[1:8]) / 2)  # between neighbouring magnitudes


def round_to_fp8(weight: torch.Tensor) -> tuple[Codes, NDArray[Any]]:
    """Round to E4M3 with one scale, the largest magnitude / 448.

    Args:
        weight: ``(out, in)``.

    Returns:
        Codes ``(out, in)``, and the scale, float32 without axes.
    """
    values = weight.float()
    scale = (values.abs().max() / E4M3_MAX).clamp(min=_LEAST)
    codes = (values / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes.view(torch.uint8).numpy(), scale.numpy()


def round_to_nvfp4(weight: torch.Tensor) -> tuple[Codes, Codes, NDArray[Any]]:
    """Round to E2M1 in blocks of 16 inputs.

    The scale of the whole is the largest magnitude / (6 · 448), and a block's its own largest magnitude / 6 in units of
    it, rounded to E4M3: at least 2⁻⁹, and 1 where all is zero.

    Args:
        weight: ``(out, in)``; blocks divide the rows.

    Returns:
        Codes ``(out, in)``, one in a byte; codes of the blocks' scales ``(out, blocks)``; and the scale of the whole,
        float32 without axes.
    """
    blocks = weight.float().unflatten(1, (-1, NVFP4_BLOCK))  # (out, blocks, 16)
    largest = blocks.abs().amax(dim=-1)
    whole = largest.max() / NVFP4_SPAN
    whole = torch.where(whole == 0, torch.ones_like(whole), whole.clamp(min=_LEAST))
    factors = largest / (E2M1_MAX * whole)
    factors = torch.where(factors == 0, torch.ones_like(factors), factors).clamp(E4M3_LEAST, E4M3_MAX)
    scales = factors.to(torch.float8_e4m3fn)
    codes = _to_e2m1(blocks / (scales.float() * whole)[..., None]).flatten(1)
    return codes.numpy(), scales.view(torch.uint8).numpy(), whole.numpy()


def _to_e2m1(values: torch.Tensor) -> torch.Tensor:
    """Return codes of the nearest numbers, of two equally near ones that with the even code; beyond 6 is 6."""
    magnitudes = values.abs().contiguous()
    below = torch.bucketize(magnitudes, _MIDDLES)  # the middle itself counts as below
    above = torch.bucketize(magnitudes, _MIDDLES, right=True)
    nearest = torch.where(below % 2 == 0, below, above)
    return (nearest + 8 * (values < 0)).to(torch.uint8)
