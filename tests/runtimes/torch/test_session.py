"""The PyTorch model behind the session interface gives what the model itself gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch.session import TorchSession

Exported = Callable[..., tuple[Path, Artifact]]
IDS = np.random.default_rng(4).integers(0, 97, (2, 30))
IDS[0, 8:25] = 11  # one token repeated


def test_all_logits_are_the_models(exported: Exported) -> None:
    model = load_model(exported()[0], torch.float64, implementation="reference")
    session = TorchSession(model)
    wanted, _ = model(torch.from_numpy(IDS))
    found = session.prefill_all(IDS, session.empty_cache(2))
    assert session.gives_all_logits and found.dtype == np.float64 and session.dtype == "float64"
    np.testing.assert_allclose(found, wanted.detach().numpy(), atol=1e-9)
    np.testing.assert_allclose(session.prefill(IDS, session.empty_cache(2)), found[:, -1:], atol=1e-9)
    assert session.identity is None and session.model is model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_go_through_arrays_without_rounding(dtype: torch.dtype, exported: Exported) -> None:
    session = TorchSession(load_model(exported()[0], dtype))
    cache = session.empty_cache(2)
    session.prefill(IDS, cache)
    arrays = session.layer_arrays(cache)
    assert {array.dtype for layer in arrays for array in layer} == {np.dtype(np.float32)}
    back = session.cache_from_arrays(arrays, cache.mask)
    for ours, stored in zip(back.layers, cache.layers, strict=True):
        assert all(x.dtype == dtype and torch.equal(x, y) for x, y in zip(ours, stored, strict=True))


def test_truncation_copies_nothing(exported: Exported) -> None:
    session = TorchSession(load_model(exported()[0], torch.float32))
    cache = session.empty_cache(2)
    session.prefill(IDS, cache)
    before = [[x.data_ptr() for x in layer] for layer in cache.layers]
    session.truncate(cache, 12)
    assert [[x.data_ptr() for x in layer] for layer in cache.layers] == before
    assert {x.shape[2] for layer in cache.layers for x in layer} == {12}
