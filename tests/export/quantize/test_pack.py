"""What is packed is what the artifact's record unpacks."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.artifact.quantization import Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import to_qdq, unpack
from lucid_deploy.export.quantize.pack import pack_numbers


@pytest.mark.parametrize("form", ["matmulnbits", "qdq"])
@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_come_back(bits: int, form: str) -> None:
    tensor, half = QuantizedTensor((5, 48), 32 if form == "matmulnbits" else 16), 1 << (bits - 1)
    numbers = np.random.default_rng(0).integers(-half, half, tensor.shape).astype(np.int8)
    packed = pack_numbers(numbers, tensor, bits)
    assert packed.shape == (5, tensor.blocks, tensor.block_size * bits // 8) and packed.dtype == np.uint8
    flat = packed.reshape(-1) if form == "matmulnbits" else to_qdq(packed, 48, bits)
    record = Quantization(f"int{bits}", bits, form, "int8", {"w": tensor}, (), "a tool")
    found, _ = unpack(record, "w", flat, np.ones((5, tensor.blocks)))
    assert np.array_equal(found, numbers)
