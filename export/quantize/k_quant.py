"""k-quant by onnxruntime: numbers with zero points, fitted to each block's range by weighted least squares.

The algorithm is llama.cpp's, the code onnxruntime's. Its zero points are whole and cannot lie outside the numbers, so a
block without zero between its least and greatest element comes out far off, and so does one of equal elements. Where
a block's error is larger than that of the nearest symmetric numbers, it has those instead, with a zero point in the
middle. Both errors are those with scales as they are stored: in float16 a small one may be zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.quantization import QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import pack_nibbles, unpack_nibbles
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.method import QuantizationMethod, Rounded
from lucid_deploy.export.quantize.nearest import METHOD as NEAREST
from lucid_deploy.export.quantize.nearest import kernel_tool, quantize_matrix
from lucid_deploy.ort import import_onnxruntime

if TYPE_CHECKING:
    import torch

    from lucid_deploy.export.quantize.options import QuantizeOptions

_ELEMENTS = 1 << 22  # of a matrix rounded together
Array = np.ndarray[Any, np.dtype[Any]]


def k_quant_matrix(
    weight: torch.Tensor, tensor: QuantizedTensor, bits: int, dtype: str = "float32"
) -> tuple[Array, Array, Array]:
    """Quantize a matrix ``(out, in)``.

    Returns:
        Packed bytes ``(out, blocks, block_size · bits / 8)``, scales of values that ``dtype`` has, float32
        ``(out, blocks)``, and packed zero points ``(out, ⌈blocks · bits / 8⌉)``, as ``MatMulNBits`` reads them.
    """
    step = max(_ELEMENTS // weight.shape[1], 1)
    parts = [_rows(rows, tensor, bits, dtype) for rows in weight.split(step)]
    codes, scales, zeros = (np.concatenate(part) for part in zip(*parts, strict=True))
    if bits == 4:
        codes, zeros = pack_nibbles(codes), pack_nibbles(zeros)
    return codes.reshape(len(codes), tensor.blocks, -1), scales, zeros


def _rows(rows: torch.Tensor, tensor: QuantizedTensor, bits: int, dtype: str) -> tuple[Array, Array, Array]:
    """Return codes ``(n, in)`` of whole blocks, scales and zero points ``(n, blocks)``."""
    import_onnxruntime()
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

    plain = rows.float().numpy()
    missing = tensor.blocks * tensor.block_size - plain.shape[1]
    blocks = np.pad(plain, ((0, 0), (0, missing))).reshape(-1, tensor.block_size)
    with np.errstate(all="ignore"):  # a block of equal elements divides by zero; it is replaced below
        codes, scales, zeros = quant_tensor_k_quant_cpu(blocks, bits, tensor.block_size)
        fitted = (codes, _stored(scales.astype(np.float32), dtype), zeros.astype(np.float32))
        numbers, factors, points = _nearest(rows, tensor, bits)
        nearest = (numbers, _stored(factors, dtype), points)
        inside = np.arange(tensor.blocks * tensor.block_size).reshape(-1, tensor.block_size) < plain.shape[1]
        inside = np.tile(inside, (len(plain), 1))  # what the last block of a row is padded with is no error
        better = _squared_error(blocks, inside, *fitted) < _squared_error(blocks, inside, *nearest)  # not where NaN
    codes, scales, zeros = (np.where(better, a, b) for a, b in zip(fitted, nearest, strict=True))
    shape = (len(plain), tensor.blocks)
    return codes.reshape(len(plain), -1).astype(np.uint8), scales.reshape(shape), zeros.reshape(shape).astype(np.uint8)


def _nearest(rows: torch.Tensor, tensor: QuantizedTensor, bits: int) -> tuple[Array, Array, Array]:
    """Return codes ``(n · blocks, block_size)``, scales and zero points ``(n · blocks, 1)`` of symmetric numbers."""
    one = QuantizedTensor((len(rows), rows.shape[1]), tensor.block_size)
    packed, scales = (np.concatenate(part) for part in zip(*quantize_matrix(rows, one, bits), strict=True))
    codes = (unpack_nibbles(packed) if bits == 4 else packed).reshape(-1, tensor.block_size).astype(np.float32)
    return codes, scales.reshape(-1, 1), np.full((len(codes), 1), 1 << (bits - 1), dtype=np.float32)


def _squared_error(blocks: Array, inside: Array, codes: Array, scales: Array, zeros: Array) -> Array:
    numbers, factors = (codes - zeros).astype(np.float64), scales.astype(np.float64)  # float32 has no small squares
    found: Array = np.square(numbers * factors - blocks).sum(axis=1, keepdims=True, where=inside)
    return found


def _stored(scales: Array, dtype: str) -> Array:
    """Return the scales as ``dtype`` has them, float32."""
    import torch

    found: Array = torch.from_numpy(scales).to(getattr(torch, dtype)).float().numpy()
    return found


class KQuant(QuantizationMethod):
    """``--method k_quant``."""

    name = "k_quant"
    zero_points = True

    def tool(self) -> str:
        return kernel_tool()

    def check(self, options: QuantizeOptions) -> None:
        if options.format == "qdq":
            raise LucidError(
                "--method k_quant gives zero points, which TensorRT does not take. Use --quantize-format matmulnbits, "
                "or --method rtn or gptq."
            )

    def round(
        self, weight: torch.Tensor, tensor: QuantizedTensor, bits: int, dtype: str, positive: bool
    ) -> Iterator[Rounded]:
        if tensor.zero_points:
            yield Rounded(*k_quant_matrix(weight, tensor, bits, dtype))
        else:  # the embedding, which is read by an operator without zero points
            yield from NEAREST.round(weight, tensor, bits, dtype, positive)


METHOD = KQuant()
