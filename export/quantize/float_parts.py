"""The bytes of weights in floating-point numbers of 8 and 4 bits, as the graphs read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lucid_deploy.artifact.quantization import INPUT_SCALE, PACKED, SCALES, STATIC_FP8, WHOLE_SCALE, Quantization
from lucid_deploy.artifact.quantized_bytes import to_qdq

if TYPE_CHECKING:
    import torch

    from lucid_deploy.model.packed.weight import FloatWeight

Parts = dict[str, NDArray[np.uint8]]  # flat


def rounded_parts(weight: torch.Tensor, name: str, quantization: Quantization) -> Parts:
    """Round a weight, see :mod:`lucid_deploy.export.quantize.floats`.

    Args:
        weight: ``(out, in)``.
        name: Its name in the checkpoint.
        quantization: With the scheme ``fp8``, one scale for a weight, or ``nvfp4``.
    """
    from lucid_deploy.export.quantize.floats import round_to_fp8, round_to_nvfp4

    if quantization.scheme == "fp8":
        codes, scale = round_to_fp8(weight)
        return {PACKED: _stored(codes, quantization), SCALES: _bytes(scale)}
    codes, scales, whole = round_to_nvfp4(weight)
    packed = codes[:, ::2] | (codes[:, 1::2] << 4)
    return {PACKED: _stored(packed, quantization), SCALES: _bytes(scales.T), WHOLE_SCALE: _bytes(whole)}


def stored_parts(weight: FloatWeight, name: str, quantization: Quantization) -> Parts:
    """Take over a weight of a checkpoint in fp8 as ``stored.plan_stored`` planned it.

    TensorRT takes positive scales only. Where one is zero, so is the weight: its numbers become zeros, and the scale 1.
    """
    tensor = quantization.tensors[name]
    scales, (rows, width) = weight.scales.float(), tensor.shape
    codes = weight.codes.masked_fill(_spread(scales == 0, weight.block, rows, width), 0)
    scales = scales.masked_fill(scales == 0, 1.0)
    if tensor.granularity != "tensor":  # one for each block of a row, not one for a rectangle of rows and inputs
        scales = _spread(scales, weight.block, rows, width)[:, :: tensor.block_size].mT
    parts = {PACKED: _stored(codes.numpy(), quantization), SCALES: _bytes(scales.numpy())}
    if quantization.activations == STATIC_FP8:
        assert weight.input_scale is not None
        parts[INPUT_SCALE] = _bytes(weight.input_scale.float().numpy())
    return parts


def _spread(values: torch.Tensor, block: tuple[int, int], rows: int, width: int) -> torch.Tensor:
    """Repeat one value of each block for the block's elements: ``(rows, width)``."""
    return values.repeat_interleave(block[0], dim=0)[:rows].repeat_interleave(block[1], dim=1)[:, :width]


def _stored(packed: NDArray[np.uint8], quantization: Quantization) -> NDArray[np.uint8]:
    width = packed.shape[1] * 8 // quantization.bits
    return to_qdq(packed, width, quantization.bits, is_float=True)


def _bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
