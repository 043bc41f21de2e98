"""The constants of the ONNX body: merging with them inverts. The body itself is the preconditioner's."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

from lucid_deploy.plugins.block_inverse.onnx_body import IDENTITY, LEAF, MASKS
from tests.plugins.block_inverse.blocks import blocks, exact_inverse


@pytest.mark.parametrize("correlation", [0.9, 0.99, 1.0])
def test_merging_with_the_constants_inverts(correlation):
    x = blocks(LEAF, correlation)
    masks, inverse = onnx.numpy_helper.to_array(MASKS), onnx.numpy_helper.to_array(IDENTITY).astype(np.float64)
    for mask in masks:
        inverse = inverse - inverse @ (mask * x.numpy()) @ inverse
    torch.testing.assert_close(torch.from_numpy(inverse), exact_inverse(x), rtol=1e-9, atol=1e-11)
