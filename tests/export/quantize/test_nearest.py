"""Rounding to the nearest integers, with positive scales where TensorRT needs them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.artifact.quantization import LEAST_SCALE, Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import to_qdq, unpack
from lucid_deploy.export.quantize.nearest import pack_numbers, quantize_matrix


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_int8_scales_for_tensorrt_are_positive(dtype: str) -> None:
    """Also those of zeros and of the smallest numbers; the largest number of a block is exact."""
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


@pytest.mark.parametrize("form", ["matmulnbits", "qdq"])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_numbers_are_unpacked_unchanged(bits: int, form: str) -> None:
    tensor, half = QuantizedTensor((5, 48), 32 if form == "matmulnbits" else 16), 1 << (bits - 1)
    numbers = np.random.default_rng(0).integers(-half, half, tensor.shape).astype(np.int8)
    packed = pack_numbers(numbers, tensor, bits)
    assert packed.shape == (5, tensor.blocks, tensor.block_size * bits // 8) and packed.dtype == np.uint8
    flat = packed.reshape(-1) if form == "matmulnbits" else to_qdq(packed, 48, bits)
    record = Quantization(f"int{bits}", bits, form, "int8", {"w": tensor}, (), "a tool")
    found, _ = unpack(record, "w", flat, np.ones((5, tensor.blocks)))
    assert np.array_equal(found, numbers)
