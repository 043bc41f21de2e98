"""The stored bytes of quantized weights, and the scales of inputs that are folded into weights.

A linear layer's weight ``[out, in]`` is cut into blocks of ``block_size`` neighbouring inputs of one output. A block
has one scale s, and its elements are whole numbers q of 4 or 8 bits, ``-2^(bits-1) ≤ q < 2^(bits-1)``; the weight is
``q · s``. Rounding to nearest follows onnxruntime's symmetric scheme: the element of largest magnitude is exactly
``-2^(bits-1)``, so s may be negative, and an element of other sign and nearly this size is clipped by up to 1 step.

int8 in the format ``qdq`` differs: TensorRT's parser refuses int8 scales that are not positive, so there s is the
largest magnitude of the block / 127, and nothing is clipped.

A block may also have a zero point z (the weight is ``(q − z) · s``) or an offset c (the weight is ``q · s + c``).

``fp8`` and ``nvfp4`` store floating-point numbers instead of whole ones; ``DequantizeLinear`` reads them, so their
format is ``qdq``. E4M3 (ONNX's ``FLOAT8E4M3FN``) has a sign, 4 bits of exponent with the bias 7 and 3 of mantissa; no
infinities, largest 448. E2M1 (``FLOAT4E2M1``) has a sign, 2 bits of exponent with the bias 1 and 1 of mantissa; largest
6. Both have subnormal numbers.

Only :func:`scaled` needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes  # comes with onnx
import numpy as np
from numpy.typing import NDArray

from lucid_deploy.artifact.quantization import OFFSETS, SCALES, Quantization, QuantizedTensor
from lucid_deploy.cache.storage import E4M3_MAX as E4M3_MAX
from lucid_deploy.errors import CheckFailed, in_one_line

if TYPE_CHECKING:
    import torch

Bytes = NDArray[np.uint8]
E2M1_MAX = 6.0
# A weight of NVFP4 is element · block's scale (E4M3) · the whole weight's scale, its largest magnitude / NVFP4_SPAN.
NVFP4_SPAN = E4M3_MAX * E2M1_MAX
# E4M3's smallest positive number, which is subnormal; no block of NVFP4 has a smaller scale.
E4M3_LEAST = 2.0**-9
_FORMATS = {8: (3, 7), 4: (1, 1)}  # by bits: bits of the mantissa, bias of the exponent
# The values of all codes, indexed by code.
E4M3 = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)


def decode(codes: NDArray[np.uint8], bits: int) -> NDArray[np.float32]:
    """Return the values of codes of E4M3 (8 bits) or E2M1 (4 bits); the shape is that of the codes."""
    return (E4M3 if bits == 8 else E2M1)[codes]


def spacing(values: NDArray[Any], bits: int) -> NDArray[np.float64]:
    """Return the distance between neighbouring numbers of a format around each value; values lie within its range."""
    mantissa_bits, bias = _FORMATS[bits]
    _, exponents = np.frexp(np.maximum(np.abs(values).astype(np.float64), 2.0 ** (1 - bias)))  # 0 has no exponent
    return np.ldexp(1.0, exponents - 1 - mantissa_bits)


def pack_nibbles(codes: NDArray[Any]) -> Bytes:
    """Put two 4-bit numbers of the last axis into each byte, the first in the lower half; a zero completes the last."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    packed: Bytes = codes[..., ::2] | (codes[..., 1::2] << 4)
    return packed


def unpack_nibbles(packed: Bytes) -> Bytes:
    """Return the 4-bit numbers of bytes, two for each byte of the last axis, the lower half first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def unpack(
    quantization: Quantization, name: str, packed: Bytes, scales: NDArray[Any], shift: NDArray[Any] | None = None
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Read a tensor's stored parts.

    Args:
        packed: The bytes of ``PACKED``, flat.
        scales: The scales, in any type and flat; of ``nvfp4`` each block's scale times that of the whole weight.
        shift: The bytes of ``ZEROS``, or the numbers of ``OFFSETS``, flat, if the tensor has them.

    Returns:
        Quantized values ``(out, in)``; times the scales they are the weight: q in int8, q − z in int16, q + c / s in
        float64, or floating-point numbers in float32; and the scales, float64 ``(out, blocks)``.
    """
    tensor, bits = quantization.tensors[name], quantization.bits_of(name)
    rows, width = tensor.shape
    shape = (rows, tensor.blocks) if tensor.experts else quantization.part_shape(name, SCALES)
    scales = scales.astype(np.float64).reshape(shape)
    if quantization.is_float:
        codes = unpack_nibbles(packed)[: width * rows] if bits == 4 else packed
        whole = scales.T if scales.ndim == 2 else np.broadcast_to(scales.reshape(-1, 1), (rows, 1))
        return decode(codes, bits).reshape(width, rows).T, whole
    if quantization.format == "qdq":
        if bits == 4:
            flat: NDArray[Any] = ((unpack_nibbles(packed)[: width * rows] + 8) & 15).astype(np.int8) - np.int8(8)
        else:
            flat = packed.view(np.int8)
        numbers, scales = np.ascontiguousarray(flat.reshape(width, rows).T), np.ascontiguousarray(scales.T)
    else:
        flat = unpack_nibbles(packed) if bits == 4 else packed
        codes = flat.reshape(rows, -1)[:, :width].astype(np.int16)
        if tensor.zero_points and shift is not None:
            points = (unpack_nibbles(shift) if bits == 4 else shift).reshape(rows, -1).astype(np.int16)
            return codes - spread(points[:, : tensor.blocks], tensor), scales
        numbers = (codes - (1 << (bits - 1))).astype(np.int8)
    if tensor.offsets and shift is not None:
        offsets = shift.astype(np.float64).reshape(quantization.part_shape(name, OFFSETS))
        offsets = offsets.reshape(scales.shape) if tensor.experts else offsets.T
        return numbers + spread(offsets / scales, tensor), scales
    return numbers, scales


def dequantize(
    quantization: Quantization, name: str, packed: Bytes, scales: NDArray[Any], shift: NDArray[Any] | None = None
) -> NDArray[np.float64]:
    """Return a tensor as the graphs read it, float64 ``(out, in)``; the arguments are those of ``unpack``."""
    numbers, factors = unpack(quantization, name, packed, scales, shift)
    return numbers * spread(factors, quantization.tensors[name])


def to_qdq(packed: Bytes, width: int, bits: int, is_float: bool = False) -> Bytes:
    """Turn packed rows into what ``DequantizeLinear`` reads: flat bytes of the values in the order ``(in, out)``.

    ``packed`` is ``(out, …)``: the bytes of each row. Whole numbers become signed; codes of floats do not change.
    """
    signed = 0 if is_float else 1 << (bits - 1)  # flips the sign bit: packed numbers have half of their range added
    rows = packed.reshape(len(packed), -1)
    codes = (unpack_nibbles(rows) if bits == 4 else rows)[:, :width] ^ signed
    flat = np.ascontiguousarray(codes.T).reshape(-1)
    return pack_nibbles(flat) if bits == 4 else flat


def spread(scales: NDArray[Any], tensor: QuantizedTensor) -> NDArray[Any]:
    """Repeat each block's value for all elements of the block: ``(out, blocks)`` to ``(out, in)``."""
    return np.repeat(scales, tensor.block_size, axis=1)[:, : tensor.shape[1]]


# Equalization multiplies the columns of W by scales s, and divides by s what produces x: the norm before, or the rows
# (and the bias) of another linear layer. So W x does not change. The graphs need no scales, but comparing an artifact's
# weights with its checkpoint's needs them, and so do adapters that are added later.
FILE = "folded_scales.safetensors"
INPUTS, OUTPUTS = ".inputs", ".outputs"  # after a weight's name: its columns were multiplied, its rows divided
Scales = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


def read_scales(directory: Path) -> Scales:
    """Return an artifact's folded scales, if any: float32, by a weight's name + :data:`INPUTS` or :data:`OUTPUTS`."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = directory / FILE
    try:
        found: Scales = load_file(path) if path.is_file() else {}
    except (SafetensorError, OSError) as error:
        raise CheckFailed(f"{path} is damaged: {in_one_line(error)}. Export it again.") from error
    return found


def write_scales(directory: Path, scales: Scales) -> None:
    """Write an artifact's folded scales; write no file if there are none."""
    from safetensors.numpy import save_file

    if scales:
        save_file({name: np.ascontiguousarray(scale) for name, scale in scales.items()}, directory / FILE)


def scaled(weight: torch.Tensor, name: str, scales: Scales) -> torch.Tensor:
    """Apply folded scales to a weight ``(out, in)``, ``(out,)`` or, of experts, ``(E, out, in)``, in float32 or wider.

    A weight without scales is returned as it is. Scales of experts may have three axes.
    """
    import torch

    inputs, outputs = (scales.get(name + part) for part in (INPUTS, OUTPUTS))
    if inputs is not None or outputs is not None:
        weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if inputs is not None:
        weight = weight * torch.from_numpy(inputs)
    if outputs is not None:
        rows = torch.from_numpy(outputs)
        if rows.dim() < weight.dim():
            rows = rows.unflatten(0, (-1, *([1] * (weight.dim() - 1))))  # (out, 1)
        weight = weight / rows
    return weight
