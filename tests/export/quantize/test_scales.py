"""Scales are the best of the candidates, and what the storage type can hold."""

from __future__ import annotations

import pytest
import torch

from lucid_deploy.artifact.quantization import LEAST_SCALE, QuantizedTensor
from lucid_deploy.export.quantize.scales import CANDIDATES, NARROWEST, WIDEST, number_range, search_scales


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
