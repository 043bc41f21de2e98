"""The PyTorch model behind the session interface: logits, cache types, and an artifact's weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import CheckFailed
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch import CAPABILITIES
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model, stored_parts
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
    assert session.model is model


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


PROMPT = np.array([[5, 5, 6, 9]])


def keys(session_of: TorchSession) -> np.ndarray:
    """Return the first layer's cached keys after a prompt; check that its logits are finite."""
    cache = session_of.empty_cache()
    assert np.isfinite(session_of.prefill(PROMPT, cache)).all()
    return session_of.layer_arrays(cache)[0][0]


def session_of(exported: Exported, dtype: str = "float32", cache_dtype: str = "auto") -> TorchSession:
    model = load_model(exported()[0], getattr(torch, dtype))
    model.store_cache_as(cache_dtype)
    return TorchSession(model)


@pytest.mark.parametrize("cache_dtype", CAPABILITIES.cache_dtypes)
def test_every_cache_type_rounds_and_runs(cache_dtype: str, exported: Exported) -> None:
    made, plain = session_of(exported, cache_dtype=cache_dtype), session_of(exported)
    assert made.cache_dtype == cache_dtype
    step = {"int8": 1 / 127, "fp8": 32 / 448}.get(cache_dtype, torch.finfo(torch.float16).eps)
    assert 0 < np.abs(keys(made) - keys(plain)).max() <= 0.51 * step * np.abs(keys(plain)).max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_numbers_and_scales_go_through_arrays_bit_by_bit(dtype: str, exported: Exported) -> None:
    """Also where the model's type would round the dequantized values."""
    made = session_of(exported, dtype, "fp8")
    cache = made.empty_cache()
    made.prefill(PROMPT, cache)
    again = made.cache_from_arrays(made.layer_arrays(cache), cache.mask)
    for before, after in zip(cache.layers, again.layers, strict=True):
        for tensor, copy in zip(before, after, strict=True):
            assert torch.equal(tensor.view(torch.uint8), copy.view(torch.uint8))


@pytest.mark.parametrize("changes", [{}, {"use_rope": False, "tie_word_embeddings": True}], ids=["own head", "tied"])
def test_every_weight_is_the_checkpoints(changes: dict[str, Any], exported: Exported) -> None:
    """Transposed weights are transposed back, and a tied head is the embedding."""
    checkpoint, artifact = exported(**changes)
    assert artifact.manifest.transposed or changes
    found = load_artifact_model(artifact).state_dict()
    wanted = load_file(checkpoint / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    if changes:
        assert torch.equal(found["lm_head.weight"], wanted["model.embed_tokens.weight"])
    doubled = load_artifact_model(artifact, dtype="float64").state_dict()
    assert {value.dtype for value in doubled.values()} == {torch.float64}
    assert all(torch.equal(doubled[name], value.double()) for name, value in wanted.items())


def test_quantized_weights_are_near_the_checkpoints(quantized: Any) -> None:
    checkpoint, artifact = quantized("int8")
    record, wanted = artifact.manifest.quantization, load_file(checkpoint / "model.safetensors")
    found = load_artifact_model(artifact).state_dict()
    parts = {name: (packed, scales) for name, packed, scales in stored_parts(artifact)}
    assert set(parts) == set(record.tensors)
    for name, (packed, scales) in parts.items():
        assert packed.dtype == np.uint8 and scales.dtype == np.float32 and np.isfinite(scales).all()
        error = (found[name] - wanted[name]).abs().max()
        # Half a step, and a whole one where the largest weight lies at the end that has 127 steps, not 128.
        assert 0 < error <= 1.01 * float(np.abs(scales).max())


def test_missing_and_misshapen_weights_are_named(exported: Exported) -> None:
    _, artifact = exported()

    def with_config(**changes: Any) -> Artifact:
        config = replace(artifact.config, **changes)
        return Artifact(artifact.directory, replace(artifact.manifest, config=config))

    with pytest.raises(CheckFailed, match=r"lacks the weights model\.layers\.2\."):
        load_artifact_model(with_config(num_hidden_layers=3))
    with pytest.raises(CheckFailed, match=r"mlp\.\w+\.weight is \(.*\), not \("):
        load_artifact_model(with_config(intermediate_size=80))
