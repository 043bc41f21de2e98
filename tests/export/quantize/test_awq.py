"""AWQ's search against the published one in plain loops over inputs, and its search for clipping."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
from lucid_deploy.export.quantize.folds import find_folds, storable
from lucid_deploy.export.quantize.inputs import embedded, load_layer, run_layer, shared_inputs
from lucid_deploy.model.checkpoint import Checkpoint
from tests.conftest import write_checkpoint
from tests.hybrid_artifact import write_hybrid

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


MLP = {"mlp.gate_proj": "post_attention_layernorm", "mlp.down_proj": "mlp.up_proj"}


def places(directory: Path, index: int = 0) -> dict[str, str | None]:
    """Return where the scale of each input goes, by the first product that reads it."""
    import numpy as np

    checkpoint = Checkpoint(directory)
    layer, config = load_layer(checkpoint, index), checkpoint.config
    (x,) = embedded(checkpoint, [np.arange(24).reshape(2, 12)])
    with torch.inference_mode():
        groups = shared_inputs(layer, lambda given: run_layer(layer, config, index, given)[0], x)
        found = find_folds(layer, lambda other, given: run_layer(other, config, index, given)[0], x, groups)
    for group, fold in zip(groups, found, strict=True):
        assert fold is None or fold.readers == tuple(group)
    return {group[0]: fold and fold.giver for group, fold in zip(groups, found, strict=True)}


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({}, None),  # two query heads to a value head: their inputs of o are no rows of v
        ({"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}, "self_attn.v_proj"),
        ({"num_key_value_heads": 4, "attention_type": "llama"}, "self_attn.v_proj"),
    ],
)
def test_attention(changes: Any, values: str | None, tmp_path: Path) -> None:
    """K is never changed, nor is what comes out of the layer."""
    found = places(write_checkpoint(tmp_path / "c", num_hidden_layers=1, **changes))
    assert found == {"self_attn.q_proj": "input_layernorm", "self_attn.o_proj": values, **MLP}


def test_delta_rules(tmp_path: Path) -> None:
    """Their convolutions and norms of heads let nothing through; their inputs come from a norm like others."""
    checkpoint = write_hybrid(tmp_path / "c")
    kinds = Checkpoint(checkpoint).config.kinds
    delta = next(index for index, kind in enumerate(kinds) if "delta" in kind)
    found = places(checkpoint, delta)
    assert found.pop("linear_attn.o_proj") is None
    first = next(iter(found))
    assert first.startswith("linear_attn.") and found == {first: "input_layernorm", **MLP}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_norm_is_divided_to_numbers_of_its_type(dtype: str) -> None:
    norm, scale = torch.linspace(-2, 2, 41), torch.logspace(-1, 1, 41)
    norm[7] = 0
    found = storable(scale, norm, dtype)
    stored = norm / found
    assert stored.to(getattr(torch, dtype)).float().sub(stored).abs().max() <= 2**-23 * stored.abs().max()
    assert ((found / scale)[norm != 0] - 1).abs().max() < {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[dtype]
