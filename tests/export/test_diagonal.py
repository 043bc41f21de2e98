"""Training's diagonal in an artifact: graphs against transformers with a solve put into it, and records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma3TextConfig

import lucid_deploy as ld
from lucid_deploy.errors import LucidError
from lucid_deploy.export import ExportOptions, export
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.model.family_shapes import MIXED, THREE, random_model
from tests.model.sequence_runs import check_sequences, token_ids
from tests.model.test_families import GATE, logits_of

WINDOW = 8
SMALL_KEYS = 0.05  # what k_proj is multiplied by


def with_small_keys(checkpoint: Path, factor: float = SMALL_KEYS) -> Path:
    """Make the keys of a checkpoint so small that the diagonal matters."""
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if "k_proj" in name:
            tensors[name] *= factor
    save_file(tensors, path)
    return checkpoint


def make_mixed(path: Path) -> Any:
    """A LUCID layer and one over a window, ε so large that the diagonal is far from 1; return transformers' model."""
    two = {**THREE, "num_hidden_layers": 2, "layer_types": MIXED[:2]}
    config = Gemma3TextConfig(**two, head_dim=16, sliding_window=WINDOW, attention_type="lucid", rms_norm_eps=0.3)
    model = random_model(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.add_(0.5)  # keys point one way
    model.save_pretrained(path)
    model.config.solved, model.config.training = (0,), True
    model.set_attn_implementation("lucid_dense")
    return model


@pytest.mark.slow
def test_graphs_compute_the_model_with_trainings_diagonal(tmp_path: Path, built_library: Path) -> None:
    """One-shot, chunked, decoded and padded, with rows and a ring in the cache."""
    model = make_mixed(tmp_path / "checkpoint")
    exact = logits_of(model, token_ids())
    model.config.training = False
    other = logits_of(model, token_ids())
    assert np.linalg.norm(other - exact) > 100 * GATE * np.linalg.norm(exact), "a wrong diagonal would pass"
    options = ExportOptions(cache="growing", diagonal="training")
    artifact = export(tmp_path / "checkpoint", tmp_path / "artifact", options)
    for kernels in ("functions", "library"):
        check_sequences(open_session(artifact, "onnxruntime", kernels=kernels), exact, GATE)
    check_sequences(TorchSession(load_model(Checkpoint(tmp_path / "checkpoint", (), "training"))), exact, GATE)
    assert artifact.config.diagonal == "training"
    assert [layer.diagonal for layer in artifact.manifest.layers] == ["training", "unit"]


@pytest.mark.slow
def test_verify_judges_with_the_artifacts_diagonal(make_checkpoint: Any, tmp_path: Path) -> None:
    """Our own model has this diagonal too; a golden file with the other diagonal fails."""
    from tests.parity.recording_models import record_lucid

    checkpoint = with_small_keys(make_checkpoint(max_position_embeddings=48, num_hidden_layers=1))
    golden = {
        name: record_lucid(checkpoint, tmp_path / f"{name}.safetensors", name, tokens=40)
        for name in ("one", "training")
    }
    artifact = ld.export(checkpoint, tmp_path / "artifact", cache="growing", diagonal="training")
    assert artifact.verify(quick=True, steps=4, golden=golden["training"]).passed
    found = artifact.verify(quick=True, steps=4, golden=golden["one"])
    assert found.own_failure is None and str(found.first_failure.tensor) == "layer 0 Y"


def test_standard_attention_has_no_diagonal(make_checkpoint: Any, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(attention_type="llama")
    with pytest.raises(LucidError, match="has no LUCID layers, so there is no diagonal to choose"):
        export(checkpoint, tmp_path / "artifact", ExportOptions(diagonal="training"))
    with pytest.raises(LucidError, match="diagonal must be unit or training, not 'one'"):
        export(checkpoint, tmp_path / "artifact", ExportOptions(diagonal="one"))
