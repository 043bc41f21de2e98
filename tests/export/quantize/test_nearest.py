"""The nearest whole numbers, with scales that TensorRT takes where they are for it."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import onnxruntime
import pytest
import torch

from lucid_deploy.artifact.quantization import LEAST_SCALE, QuantizedTensor
from lucid_deploy.export.quantize.nearest import kernel_tool, quantize_matrix


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_int8_scales_that_tensorrt_takes(dtype: str) -> None:
    """Positive, also of zeros and of the smallest numbers; the largest number of a block is exact."""
    tensor, least = QuantizedTensor((3, 40), 16), LEAST_SCALE[dtype]
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    weight[0, :16], weight[1, 16:32] = 0, weight[1, 16:32] * 1e-30
    ((packed, scales),) = quantize_matrix(weight, tensor, 8, least)
    stored = torch.from_numpy(scales).to(getattr(torch, dtype))
    assert (stored > 0).all() and packed.shape == (3, 3, 16)
    numbers = packed.reshape(3, 48)[:, :40].astype(np.float64) - 128
    error = np.abs(numbers * np.repeat(scales, 16, axis=1)[:, :40] - weight.double().numpy())
    assert (error <= np.repeat(scales, 16, axis=1)[:, :40] * 0.5001).all()
    assert (np.abs(numbers[:, 32:]).max(axis=-1) == 127).all() and not numbers[0, :16].any()


def test_what_is_installed_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of a second, of each export that quantizes."""
    wanted = f"onnxruntime {onnxruntime.__version__}"
    assert kernel_tool() == wanted
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: pytest.fail("read again"))
    assert kernel_tool() == wanted
