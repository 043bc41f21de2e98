"""AWQ's search against the published one in plain loops over inputs, and its search for clipping."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lucid_deploy.artifact.quantization import QuantizedTensor
from lucid_deploy.export.quantize.awq import (
    Target,
    clipped_scales,
    input_scale,
    input_sizes,
    nearest_scales,
    rounded,
)

GENERATOR = torch.Generator().manual_seed(0)
# A few inputs are much larger than others, and inputs share a direction, as in trained models.
LARGE = torch.where(torch.arange(80) % 11 == 0, 12.0, 0.3)
X = (torch.randn(300, 80, generator=GENERATOR) + 2 * torch.randn(80, generator=GENERATOR)) * LARGE
WEIGHTS = [torch.randn(rows, 80, generator=GENERATOR) for rows in (24, 8)]


def target_of(weight: torch.Tensor, positive: bool = False, bits: int = 4) -> Target:
    return Target(QuantizedTensor((len(weight), weight.shape[1]), 16), bits, "float32", positive)


def published(x: np.ndarray, weight: np.ndarray, bits: int = 4) -> np.ndarray:
    """llm-awq's search for one linear layer, in float64: s of the least squared error of its outputs over the inputs.

    With symmetric numbers, as ``--quantize-format qdq`` has them with 8 bits.
    """
    magnitude, best, least = np.abs(x).mean(axis=0), None, np.inf
    top = 2 ** (bits - 1) - 1
    for step in range(20):
        s = np.maximum(magnitude ** (step / 20), 1e-4)
        s /= np.sqrt(s.max() * s.min())
        blocks = (weight * s).reshape(len(weight), -1, 16)
        scale = np.abs(blocks).max(axis=-1, keepdims=True) / top
        changed = (np.clip(np.rint(blocks / scale), -top, top) * scale).reshape(weight.shape)
        loss = np.square((x / s) @ changed.T - x @ weight.T).mean()
        if loss < least:
            best, least = s, loss
    assert best is not None
    return best


def test_the_scale_is_the_published_one() -> None:
    """And it is not 1: the large inputs are worth it."""
    (sizes,) = input_sizes([[X[:100]], [X[100:]]], 1)
    for weight in WEIGHTS:
        found = input_scale(sizes, [(weight, target_of(weight, positive=True))])
        wanted = published(X.double().numpy(), weight.double().numpy())
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)
        assert found.max() > 2 * found.min()


def test_every_step_of_the_search_counts() -> None:
    """Inputs of which some are a little larger ask for powers between the tenths, too."""
    chosen = set()
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(200, 80, generator=generator) * torch.where(torch.arange(80) % 7 == seed % 7, 2.0 + seed, 0.5)
        weight = torch.randn(16, 80, generator=generator)
        (sizes,) = input_sizes([[x]], 1)
        found = input_scale(sizes, [(weight, target_of(weight, positive=True))])
        np.testing.assert_allclose(found.numpy(), published(x.double().numpy(), weight.double().numpy()), rtol=1e-5)
        spread = sizes.magnitude.max() / sizes.magnitude.min()
        chosen.add(round(20 * float((found.max() / found.min()).log() / spread.log())))
    assert any(step % 2 for step in chosen), f"only tenths were chosen: {chosen}"


def lost(weight: torch.Tensor, found: torch.Tensor) -> float:
    return float((X @ (found - weight).mT).square().mean())


@pytest.mark.parametrize("bits", [4, 8])
def test_less_is_lost_than_with_nearest_numbers(bits: int) -> None:
    """By the scale of inputs, and again by the search for clipping; two products share one scale."""
    (sizes,) = input_sizes([[X]], 1)
    scale = input_scale(sizes, [(weight, target_of(weight, bits=bits)) for weight in WEIGHTS])
    for weight in WEIGHTS:
        target, changed = target_of(weight, bits=bits), weight * scale
        nearest = rounded(weight, nearest_scales(weight, target), target)[1]
        alone = rounded(changed, nearest_scales(changed, target), target)[1] / scale
        scales = clipped_scales(changed, target, sizes.x_x / torch.outer(scale, scale))
        numbers, both = rounded(changed, scales, target)
        assert numbers.dtype == torch.int8 and numbers.short().abs().max() <= 1 << (bits - 1)
        losses = [lost(weight, each) for each in (nearest, alone, both / scale)]
        assert losses[2] < losses[1] < losses[0]


def test_inputs_that_are_always_zero() -> None:
    """Whole blocks of them, and all of them; rows that no whole block fills."""
    x, weight = X[:, :40].clone(), WEIGHTS[0][:, :40]
    x[:, 16:32] = 0
    for given in (x, torch.zeros_like(x)):
        (sizes,) = input_sizes([[given]], 1)
        target = target_of(weight)
        scale = input_scale(sizes, [(weight, target)])
        scales = clipped_scales(weight * scale, target, sizes.x_x / torch.outer(scale, scale))
        assert scale.isfinite().all() and (scale > 0).all() and scales.isfinite().all() and scales.shape == (24, 3)
