"""What the PyTorch runtime declares, the model runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch.runtime import CAPABILITIES
from lucid_deploy.runtimes.torch.session import TorchSession

Exported = Callable[..., tuple[Path, Artifact]]
IDS = np.array([[5, 5, 6, 9]])


def keys(session: TorchSession) -> np.ndarray:
    """The first layer's cached keys after a prompt whose logits are numbers."""
    cache = session.empty_cache()
    assert np.isfinite(session.prefill(IDS, cache)).all()
    return session.layer_arrays(cache)[0][0]


def session(exported: Exported, dtype: str = "float32", cache_dtype: str = "auto") -> TorchSession:
    model = load_model(exported()[0], getattr(torch, dtype))
    model.store_cache_as(cache_dtype)
    return TorchSession(model)


@pytest.mark.parametrize("dtype", CAPABILITIES.dtypes)
def test_every_type_runs(dtype: str, exported: Exported) -> None:
    made, exact = session(exported, dtype), session(exported, "float64")
    assert (made.dtype, made.cache_dtype, made.capabilities) == (dtype, dtype, CAPABILITIES)
    rounding = torch.finfo(getattr(torch, dtype)).eps
    assert np.abs(keys(made) - keys(exact)).max() < 20 * rounding * np.abs(keys(exact)).max()


@pytest.mark.parametrize("cache_dtype", CAPABILITIES.cache_dtypes)
def test_every_cache_type_rounds_and_runs(cache_dtype: str, exported: Exported) -> None:
    made, plain = session(exported, cache_dtype=cache_dtype), session(exported)
    assert made.cache_dtype == cache_dtype
    step = {"int8": 1 / 127, "fp8": 32 / 448}.get(cache_dtype, torch.finfo(torch.float16).eps)
    assert 0 < np.abs(keys(made) - keys(plain)).max() <= 0.51 * step * np.abs(keys(plain)).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_and_scales_go_through_arrays_bit_by_bit(dtype: str, exported: Exported) -> None:
    """Also where the model's type would round what they stand for."""
    made = session(exported, dtype, "fp8")
    cache = made.empty_cache()
    made.prefill(IDS, cache)
    again = made.cache_from_arrays(made.layer_arrays(cache), cache.mask)
    for before, after in zip(cache.layers, again.layers, strict=True):
        for tensor, copy in zip(before, after, strict=True):
            assert torch.equal(tensor.view(torch.uint8), copy.view(torch.uint8))
