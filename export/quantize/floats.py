"""Round weights to E4M3 and NVFP4 with the scales of NVIDIA's ModelOpt, or convert the weights of an FP8 checkpoint.

ModelOpt's formulas: ``FP8QTensor`` and ``NVFP4QTensor`` in ``modelopt/torch/quantization/qtensor``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from lucid_deploy.artifact.quantization import (
    INPUT_SCALE,
    NVFP4_BLOCK,
    PACKED,
    SCALES,
    STATIC_FP8,
    WHOLE_SCALE,
    Quantization,
)
from lucid_deploy.artifact.quantized_bytes import E2M1, E2M1_MAX, E4M3_LEAST, E4M3_MAX, NVFP4_SPAN, pack_nibbles, to_qdq

if TYPE_CHECKING:
    from lucid_deploy.model.packed.weight import FloatWeight

Codes = NDArray[np.uint8]
_LEAST = 2.0**-126  # lower bound of scales, to avoid division by 0: float32's smallest normal number
_MIDDLES = torch.from_numpy((E2M1[:7] + E2M1[1:8]) / 2)  # midpoints between adjacent magnitudes


def round_to_fp8(weight: torch.Tensor) -> tuple[Codes, NDArray[Any]]:
    """Round a weight ``(out, in)`` to E4M3 with one scale, its largest magnitude / 448.

    Returns:
        Codes ``(out, in)``, and the scale, a float32 scalar.
    """
    values = weight.float()
    scale = (values.abs().max() / E4M3_MAX).clamp(min=_LEAST)
    codes = (values / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)
    return codes.view(torch.uint8).numpy(), scale.numpy()


def round_to_nvfp4(weight: torch.Tensor) -> tuple[Codes, Codes, NDArray[Any]]:
    """Round a weight ``(out, in)`` to E2M1 in blocks of 16 inputs.

    The weight's scale is its largest magnitude / (6 · 448). In units of this scale, a block's scale is the block's
    largest magnitude / 6, rounded to E4M3 and at least 2⁻⁹. A block, or a weight, of zeros has the scale 1.

    Returns:
        Codes ``(out, in)``, one per byte; codes of the blocks' scales ``(out, blocks)``; and the weight's scale, a
        float32 scalar.
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
    """Return the codes of the nearest E2M1 values; ties go to the even code, and values beyond ±6 become ±6."""
    magnitudes = values.abs().contiguous()
    below = torch.bucketize(magnitudes, _MIDDLES)  # a midpoint counts as below
    above = torch.bucketize(magnitudes, _MIDDLES, right=True)
    nearest = torch.where(below % 2 == 0, below, above)
    return (nearest + 8 * (values < 0)).to(torch.uint8)


Parts = dict[str, NDArray[np.uint8]]  # flat bytes, by part


def rounded_parts(weight: torch.Tensor, quantization: Quantization) -> Parts:
    """Round a weight to the scheme of ``quantization``; return the bytes of its codes and scales by part."""
    if quantization.scheme == "fp8":
        codes, scale = round_to_fp8(weight)
        return {PACKED: _stored(codes, quantization), SCALES: _bytes(scale)}
    codes, scales, whole = round_to_nvfp4(weight)
    return {PACKED: _stored(pack_nibbles(codes), quantization), SCALES: _bytes(scales.T), WHOLE_SCALE: _bytes(whole)}


def parts_taken_over(weight: FloatWeight, name: str, quantization: Quantization) -> Parts:
    """Return the bytes of the codes and scales, by part, of a weight of an FP8 checkpoint, without rounding it again.

    TensorRT accepts only positive scales, so a block whose scale is zero is stored as zeros with the scale 1.
    """
    tensor = quantization.tensors[name]
    scales, (rows, width) = weight.scales.float(), tensor.shape
    codes = weight.codes.masked_fill(_spread(scales == 0, weight.block, rows, width), 0)
    scales = scales.masked_fill(scales == 0, 1.0)
    if tensor.granularity != "tensor":  # one per block of a row; the checkpoint has one per rectangle
        scales = _spread(scales, weight.block, rows, width)[:, :: tensor.block_size].mT
    parts = {PACKED: _stored(codes.numpy(), quantization), SCALES: _bytes(scales.numpy())}
    if quantization.activations == STATIC_FP8:
        assert weight.input_scale is not None
        parts[INPUT_SCALE] = _bytes(weight.input_scale.float().numpy())
    return parts


def _spread(values: torch.Tensor, block: tuple[int, int], rows: int, width: int) -> torch.Tensor:
    """Expand one value per block to the block's elements: ``(rows, width)``."""
    return values.repeat_interleave(block[0], dim=0)[:rows].repeat_interleave(block[1], dim=1)[:, :width]


def _stored(packed: NDArray[np.uint8], quantization: Quantization) -> NDArray[np.uint8]:
    width = packed.shape[1] * 8 // quantization.bits
    return to_qdq(packed, width, quantization.bits, is_float=True)


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
