"""Constants of the ONNX function bodies that merge inverses: masks and the identity."""

from __future__ import annotations

import numpy as np
import onnx

LEAF = 32  # width of the diagonal blocks that are inverted by masked products


def _merge_masks() -> np.ndarray:
    """Return the masks of ``reference.merge_masks(32)``, made without PyTorch: float32 ``(5, 32, 32)``."""
    halves = 2 ** np.arange(LEAF.bit_length() - 1)
    block = np.arange(LEAF) // halves[:, None]  # (5, 32): the s-wide block of each index, s in halves
    row, column = block[:, :, None], block[:, None, :]
    return ((row // 2 == column // 2) & (row > column)).astype(np.float32)


MASKS = onnx.numpy_helper.from_array(_merge_masks())
IDENTITY = onnx.numpy_helper.from_array(np.eye(LEAF, dtype=np.float32))
