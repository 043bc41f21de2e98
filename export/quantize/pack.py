"""Whole numbers to the bytes that ``MatMulNBits`` reads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lucid_deploy.artifact.quantization import QuantizedTensor


def pack_numbers(numbers: NDArray[np.int8], tensor: QuantizedTensor, bits: int) -> NDArray[np.uint8]:
    """Pack a matrix of whole numbers.

    Args:
        numbers: Int8 ``(out, in)``.
        tensor: Its shape and blocks.
        bits: 4 or 8.

    Returns:
        ``(out, blocks, block_size · bits / 8)``: each number with ``2^(bits-1)`` added, two of 4 bits in a byte, lower
        half first; what a row lacks in its last block is zero.
    """
    offset: NDArray[Any] = (numbers.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    missing = tensor.blocks * tensor.block_size - numbers.shape[1]
    whole = np.pad(offset, ((0, 0), (0, missing)), constant_values=1 << (bits - 1))
    packed = whole if bits == 8 else whole[:, ::2] | (whole[:, 1::2] << 4)
    return packed.reshape(len(numbers), tensor.blocks, -1)
