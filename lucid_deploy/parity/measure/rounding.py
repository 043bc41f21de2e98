"""Round to the types that models are stored in, numpy's own or not."""

from __future__ import annotations

import numpy as np

from lucid_deploy.runtimes.session import Array


def round_to(values: Array, dtype: str) -> Array:
    """Return the values rounded to nearest, ties to even, in a float type; the result is float64.

    Args:
        values: Any float array.
        dtype: ``float64``, ``float32``, ``float16`` or ``bfloat16``.
    """
    with np.errstate(over="ignore"):
        if dtype != "bfloat16":
            return values.astype(dtype).astype(np.float64)
        bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
        kept = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        kept = np.where((bits & 0x7FFFFFFF) > 0x7F800000, bits, kept).astype(np.uint32)  # NaN stays NaN
    return kept.view(np.float32).astype(np.float64)
