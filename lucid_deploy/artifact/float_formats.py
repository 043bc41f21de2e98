"""Floating-point numbers of 8 and 4 bits, in which weights may be stored: E4M3 and E2M1. Needs numpy alone.

E4M3 (ONNX's ``FLOAT8E4M3FN``): sign, 4 bits of exponent with the bias 7, 3 of mantissa; no infinities, largest 448.
E2M1 (``FLOAT4E2M1``): sign, 2 bits of exponent with the bias 1, 1 of mantissa; largest 6. Both have subnormal numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lucid_deploy.cache.storage import E4M3_MAX

__all__ = ["E2M1", "E2M1_MAX", "E4M3", "E4M3_LEAST", "E4M3_MAX", "NVFP4_BLOCK", "NVFP4_SPAN", "decode", "spacing"]

E2M1_MAX = 6.0
# A weight of NVFP4 is element · block's scale (E4M3) · scale of the whole; the last is the largest magnitude / this.
NVFP4_SPAN = E4M3_MAX * E2M1_MAX
NVFP4_BLOCK = 16
# The least scale of a block of NVFP4, and of anything in E4M3: the smallest subnormal number.
E4M3_LEAST = 2.0**-9
_FORMATS = {8: (3, 7), 4: (1, 1)}  # bits: bits of mantissa, bias


def _table(bits: int) -> NDArray[np.float32]:
    """Return the value of every code."""
    mantissa_bits, bias = _FORMATS[bits]
    codes = np.arange(1 << bits)
    magnitudes = codes & ((1 << (bits - 1)) - 1)
    exponents, mantissas = magnitudes >> mantissa_bits, magnitudes & ((1 << mantissa_bits) - 1)
    fractions = mantissas / (1 << mantissa_bits) + (exponents > 0)
    values = fractions * 2.0 ** (np.maximum(exponents, 1) - bias)
    if bits == 8:
        values[magnitudes == 0x7F] = np.nan
    return np.where(codes >> (bits - 1), -values, values).astype(np.float32)


E4M3, E2M1 = _table(8), _table(4)  # values by code


def decode(codes: NDArray[np.uint8], bits: int) -> NDArray[np.float32]:
    """Return the values of codes of E4M3 (8 bits) or E2M1 (4 bits); the shape is that of the codes."""
    values: NDArray[np.float32] = (E4M3 if bits == 8 else E2M1)[codes]
    return values


def spacing(values: NDArray[Any], bits: int) -> NDArray[np.float64]:
    """Return how far apart the neighbouring numbers of a format are around some values within its range."""
    mantissa_bits, bias = _FORMATS[bits]
    _, exponents = np.frexp(np.abs(values).astype(np.float64))
    found: NDArray[np.float64] = 2.0 ** (np.maximum(exponents - 1, 1 - bias) - mantissa_bits)
    return found
