"""What a function body needs to merge inverses: masks and the identity, as constants of a graph."""

from __future__ import annotations

import numpy as np
import onnx

from lucid_deploy.plugins.block_inverse.reference import merge_masks

LEAF = 32  # smallest diagonal block, inverted with dense masked products

MASKS = onnx.numpy_helper.from_array(merge_masks(LEAF).numpy().astype(np.float32))  # (5, 32, 32)
IDENTITY = onnx.numpy_helper.from_array(np.eye(LEAF, dtype=np.float32))
