"""HQQ against the package that made it common, whose file of the algorithm needs no GPU."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact.quantization import Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import dequantize
from lucid_deploy.export.quantize.hqq import hqq_matrix
from tests.compat.environments import packages_beside

pytestmark = pytest.mark.compat

PACKAGE = "hqq==0.2.8"


@pytest.fixture(scope="module")
def published() -> Any:
    """Return the function, without the rest of the package, which imports transformers' models."""
    path = packages_beside(PACKAGE) / "hqq" / "core" / "optimize.py"
    spec = importlib.util.spec_from_file_location("published_hqq", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.optimize_weights_proximal


@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_agree_with_the_package(bits: int, block: int, published: Any) -> None:
    """Both in float32; the package divides where we multiply, so that a number near a tie may differ."""
    weight = torch.randn(48, 256, generator=torch.Generator().manual_seed(bits)) * 0.05
    blocks, top = weight.reshape(-1, block), 2**bits - 1
    low, high = blocks.amin(1, keepdim=True), blocks.amax(1, keepdim=True)
    scale = top / (high - low)  # as its Quantizer starts
    q, scale, zero = published(blocks, scale, -low * scale, [0, top], axis=1, device="cpu")
    theirs = ((q - zero) / scale).reshape(weight.shape).double().numpy()
    tensor = QuantizedTensor((48, 256), block, offsets=True)
    packed, scales, offsets = hqq_matrix(weight, tensor, bits)
    record = Quantization(f"int{bits}", bits, "matmulnbits", "int8", {"w": tensor}, (), "a tool")
    ours = dequantize(record, "w", packed.reshape(-1), scales.numpy(), offsets.mT.numpy().reshape(-1))
    step = float((1 / scale).mean())
    assert (np.abs(ours - theirs) > 1e-3 * step).mean() < 0.002
    nearest = np.rint(weight.numpy() * 1.0 / step) * step
    assert np.linalg.norm(ours - theirs) < 0.02 * np.linalg.norm(nearest - weight.numpy())
