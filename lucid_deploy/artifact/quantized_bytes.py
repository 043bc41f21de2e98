"""What the stored bytes of a quantized weight mean.

A linear layer's weight ``[out, in]`` is cut into blocks of ``block_size`` neighbouring inputs of one output. A block
has one scale s, and its elements are whole numbers q of 4 or 8 bits, ``-2^(bits-1) ≤ q < 2^(bits-1)``; the weight is
``q · s``. The element of largest magnitude is ``-2^(bits-1)`` exactly, so s may be negative, and an element of the
other sign and nearly the same magnitude is clipped by up to one step. That is onnxruntime's symmetric scheme.

int8 in the format ``qdq`` differs: TensorRT's parser refuses int8 scales that are not positive, so there s is the
largest magnitude of the block / 127, and nothing is clipped.

A block may have more: a whole number z, and the weight is ``(q − z) · s``; or an offset c, and it is ``q · s + c``.

``fp8`` and ``nvfp4`` are floating-point numbers in the place of whole ones, see
:mod:`lucid_deploy.artifact.float_formats`; ``DequantizeLinear`` reads them, so their format is ``qdq``.

Needs numpy alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lucid_deploy.artifact.float_formats import decode
from lucid_deploy.artifact.quantization import OFFSETS, SCALES, Quantization, QuantizedTensor

Bytes = NDArray[np.uint8]


def unpack(
    quantization: Quantization, name: str, packed: Bytes, scales: NDArray[Any], shift: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read a tensor's stored parts.

    Args:
        quantization: The record.
        name: The checkpoint's name of the tensor.
        packed: The bytes of ``PACKED``, flat.
        scales: The scales, in any type and flat; of ``nvfp4`` the products of a block's and the whole's.
        shift: The bytes of ``ZEROS``, or the numbers of ``OFFSETS``, flat, if the tensor has them.

    Returns:
        The whole numbers q, int8 ``(out, in)``, or q − z, int16, or q + c / s, float64, or floating-point numbers,
        float32, and the scales, float64 ``(out, blocks)``.
    """
    tensor, bits = quantization.tensors[name], quantization.bits_of(name)
    rows, width = tensor.shape
    scales = scales.astype(np.float64).reshape(quantization.part_shape(name, SCALES))
    if quantization.is_float:
        codes = _halves(packed, signed=False)[: width * rows] if bits == 4 else packed
        whole = scales.T if scales.ndim == 2 else np.broadcast_to(scales.reshape(-1, 1), (rows, 1))
        return decode(codes, bits).reshape(width, rows).T, whole
    if quantization.format == "qdq":
        flat = _halves(packed, signed=True)[: width * rows] if bits == 4 else packed.view(np.int8)
        numbers, scales = np.ascontiguousarray(flat.reshape(width, rows).T), np.ascontiguousarray(scales.T)
    else:
        flat = _halves(packed, signed=False) if bits == 4 else packed
        codes = flat.reshape(rows, -1)[:, :width].astype(np.int16)
        if tensor.zero_points and shift is not None:
            points = (_halves(shift, signed=False) if bits == 4 else shift).reshape(rows, -1).astype(np.int16)
            return codes - spread(points[:, : tensor.blocks], tensor), scales
        numbers = (codes - (1 << (bits - 1))).astype(np.int8)
    if tensor.offsets and shift is not None:
        offsets = shift.astype(np.float64).reshape(quantization.part_shape(name, OFFSETS)).T
        return numbers + spread(offsets / scales, tensor), scales
    return numbers, scales


def dequantize(
    quantization: Quantization, name: str, packed: Bytes, scales: NDArray[Any], shift: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Return a tensor as the graphs read it, float64 ``(out, in)``; arguments as :meth:`unpack`."""
    numbers, factors = unpack(quantization, name, packed, scales, shift)
    return numbers * spread(factors, quantization.tensors[name])


def to_qdq(packed: Bytes, width: int, bits: int, is_float: bool = False) -> Bytes:
    """Turn packed rows of a whole matrix into what ``DequantizeLinear`` reads: ``(in, out)``, signed.

    Args:
        packed: ``(out, blocks, block_size · bits / 8)``, as the format ``matmulnbits`` stores them.
        width: Elements of a row.
        bits: 4 or 8.
        is_float: Whether these are codes of floating-point numbers, which stay as they are.

    Returns:
        Flat bytes; int4 two in a byte, the lower half first.
    """
    signed = 0 if is_float else 1 << (bits - 1)  # from numbers with half the range added
    if bits == 8:
        return np.ascontiguousarray((packed.reshape(len(packed), -1)[:, :width] ^ signed).T).reshape(-1)
    numbers = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :width] ^ signed
    flat = np.ascontiguousarray(numbers.T).reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return flat[::2] | (flat[1::2] << 4)


def spread(scales: NDArray[Any], tensor: QuantizedTensor) -> NDArray[Any]:
    """Repeat one number a block for each element: ``(out, blocks)`` to ``(out, in)``."""
    return np.repeat(scales, tensor.block_size, axis=1)[:, : tensor.shape[1]]


def _halves(packed: Bytes, signed: bool) -> NDArray[Any]:
    """Return the 4-bit numbers of flat bytes, the lower half of a byte first."""
    halves = np.stack([packed & 15, packed >> 4], axis=-1).reshape(-1)
    return (((halves + 8) & 15).astype(np.int8) - 8).astype(np.int8) if signed else halves
