"""The nearest whole numbers, with scales that TensorRT takes where they are for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.artifact.quantization import LEAST_SCALE, Quantization, QuantizedTensor
from lucid_deploy.artifact.quantized_bytes import to_qdq, unpack
from lucid_deploy.export.quantize.nearest import pack_numbers, quantize_matrix
from lucid_deploy.export.quantize.scales import CANDIDATES, NARROWEST, WIDEST, number_range, search_scales


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


def error(block: torch.Tensor, scale: float, limits: tuple[int, int]) -> float:
    return float(((block / scale).round().clamp(*limits) * scale - block).square().sum())


@pytest.mark.parametrize(("bits", "positive"), [(4, False), (8, False), (8, True)])
def test_no_candidate_is_better(bits: int, positive: bool) -> None:
    weight = torch.randn(5, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scales, limits = (
        search_scales(weight, QuantizedTensor((5, 40), 16), bits, "float32", positive),
        number_range(bits, positive),
    )
    assert scales.shape == (5, 3) and limits == {(4, False): (-8, 7), (8, False): (-128, 127)}.get(
        (bits, positive), (-127, 127)
    )
    for row in range(5):
        for index, block in enumerate(weight[row].split(16)):
            fits = float(block.abs().max()) / max(map(abs, limits))
            tried = [fits * float(factor) for factor in torch.linspace(NARROWEST, WIDEST, CANDIDATES)]
            if not positive:
                tried += [-scale for scale in tried]
            best = min(error(block, scale, limits) for scale in tried)
            assert error(block, float(scales[row, index]), limits) == pytest.approx(best, rel=1e-4)
    assert (scales > 0).all() or not positive


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_scales_are_stored_as_they_are(dtype: str) -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    weight[0], weight[1] = 0, weight[1] * 1e-30
    scales = search_scales(weight, QuantizedTensor((4, 32), 16), 4, dtype)
    assert scales.equal(scales.to(getattr(torch, dtype)).float()) and (scales.abs() >= LEAST_SCALE[dtype]).all()
