"""Quantize weights to int8 or int4 by rounding to the nearest integer (RTN), and pack integers into bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lucid_deploy.artifact.quantization import LEAST_SCALE, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import pack_nibbles
from lucid_deploy.cache.storage import LEVELS
from lucid_deploy.errors import missing_extra
from lucid_deploy.export.quantize.method import QuantizationMethod, Rounded
from lucid_deploy.ort import import_onnxruntime

if TYPE_CHECKING:
    import torch


def pack_numbers(numbers: NDArray[np.int8], tensor: QuantizedTensor, bits: int) -> NDArray[np.uint8]:
    """Pack a matrix of integers into bytes.

    Args:
        numbers: Int8 ``(out, in)``.

    Returns:
        Bytes ``(out, blocks, block_size · bits / 8)``: each integer plus ``2^(bits-1)``; with 4 bits, two per byte, the
        first in the low half. A row's last block is padded with (shifted) zeros.
    """
    offset: NDArray[Any] = (numbers.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    missing = tensor.blocks * tensor.block_size - numbers.shape[1]
    whole = np.pad(offset, ((0, 0), (0, missing)), constant_values=1 << (bits - 1))
    packed = whole if bits == 8 else pack_nibbles(whole)
    return packed.reshape(len(numbers), tensor.blocks, -1)


_SLICE = 1 << 22  # elements to quantize at once


def quantize_matrix(
    weight: torch.Tensor, tensor: QuantizedTensor, bits: int, least_scale: float | None = None
) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Quantize a matrix ``(out, in)``, some rows at a time.

    Args:
        least_scale: For 8 bits, a positive lower bound of the scales; None: use onnxruntime's quantizer.

    Yields:
        Bytes as :func:`pack_numbers` returns them, ``(rows, blocks, block_size · bits / 8)``, and scales, float32
        ``(rows, blocks)``.
    """
    kernel = nearest_kernel(f"int{bits}")
    (count, width), blocks, size = tensor.shape, tensor.blocks, tensor.block_size
    step = max(_SLICE // width, 1)
    for start in range(0, count, step):
        rows = weight[start : start + step].float().numpy()
        if least_scale is not None:
            yield round_blocks(rows, tensor, least_scale)
            continue
        columns = np.zeros((blocks * size, len(rows)), dtype=np.float32)
        columns[:width] = rows.T
        packed = np.zeros((len(rows), blocks, size * bits // 8), dtype=np.uint8)
        scales = np.zeros((len(rows), blocks), dtype=np.float32)
        unused = np.zeros((len(rows), -(-blocks * bits // 8)), dtype=np.uint8)  # zero points; the scheme is symmetric
        kernel(packed, columns, scales, unused, size, len(rows), width, True)
        yield packed, scales


def nearest_kernel(scheme: str) -> Any:
    """Return onnxruntime's quantizer to ``int4`` or ``int8``; ``LucidError`` if onnxruntime is not installed."""
    try:
        import_onnxruntime()
        from onnxruntime.capi import _pybind_state as kernels
    except ImportError as error:
        raise missing_extra("onnxruntime", "cpu", "quantize weights") from error
    # onnxruntime.quantization.matmul_nbits_quantizer calls these functions, but needs the whole model in memory.
    return kernels.quantize_matmul_8bits if scheme == "int8" else kernels.quantize_matmul_4bits


def round_blocks(
    rows: NDArray[Any], tensor: QuantizedTensor, least_scale: float
) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Round rows to 8 bits with positive scales, as the format ``qdq`` requires.

    Args:
        rows: Rows of a weight, float32 ``(n, in)``.
        least_scale: The lower bound of the scales, which a block of zeros gets.

    Returns:
        Integers from −127 to 127, plus 128, ``(n, blocks, block_size)``, and scales, float32 ``(n, blocks)``: the
        block's largest magnitude / 127.
    """
    padded = np.pad(rows, ((0, 0), (0, tensor.blocks * tensor.block_size - rows.shape[1])))
    blocks = padded.reshape(len(rows), tensor.blocks, tensor.block_size)
    scales = np.maximum(np.abs(blocks).max(axis=-1) / np.float32(LEVELS), np.float32(least_scale))
    numbers = np.clip(np.rint(blocks / scales[..., None]), -LEVELS, LEVELS)
    return (numbers + 128).astype(np.uint8), scales


class Nearest(QuantizationMethod):
    """The method ``--method rtn``: round every value to the nearest multiple of its block's scale."""

    name = "rtn"

    def tool(self) -> str:
        return f"onnxruntime {import_onnxruntime().__version__}"

    def round(
        self, weight: torch.Tensor, tensor: QuantizedTensor, bits: int, dtype: str, positive: bool
    ) -> Iterator[Rounded]:
        for packed, scales in quantize_matrix(weight, tensor, bits, LEAST_SCALE[dtype] if positive else None):
            yield Rounded(packed, scales)


METHOD = Nearest()
