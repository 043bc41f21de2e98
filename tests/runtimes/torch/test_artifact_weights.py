"""The PyTorch model gets the checkpoint's own weights back out of an artifact."""

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
from lucid_deploy.runtimes.torch.artifact_weights import load_artifact_model, stored_parts

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize("changes", [{}, {"use_rope": False, "tie_word_embeddings": True}], ids=["own head", "tied"])
def test_every_weight_is_the_checkpoints(changes: dict[str, Any], exported: Exported) -> None:
    """Transposed ones stand as in the checkpoint again, and a tied head is the embedding."""
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


def test_what_the_graph_lacks_is_named(exported: Exported) -> None:
    _, artifact = exported()

    def with_config(**changes: Any) -> Artifact:
        config = replace(artifact.config, **changes)
        return Artifact(artifact.directory, replace(artifact.manifest, config=config))

    with pytest.raises(CheckFailed, match=r"lacks the weights model\.layers\.2\."):
        load_artifact_model(with_config(num_hidden_layers=3))
    with pytest.raises(CheckFailed, match=r"mlp\.\w+\.weight is \(.*\), not \("):
        load_artifact_model(with_config(intermediate_size=80))
