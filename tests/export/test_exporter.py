"""The artifact: graphs that any client can run, files that are listed, atomic writing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.export import export
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes import open_session

Exported = Callable[..., tuple[Path, Artifact]]


def load(artifact: Artifact, stage: str) -> onnx.ModelProto:
    return onnx.load(str(artifact.graph_path(stage)), load_external_data=False)


def test_the_artifact_works_from_any_directory(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, artifact = exported()
    shutil.copytree(artifact.directory, tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path)
    session = open_session("elsewhere/moved")
    tokens = np.array([[3, 5, 7]])
    reference, _ = load_model(checkpoint)(torch.from_numpy(tokens))
    logits = session.prefill(tokens, session.empty_cache())
    np.testing.assert_allclose(logits[:, -1], reference[:, -1].numpy(), rtol=1e-4, atol=1e-4)


def test_plain_onnxruntime_runs_the_graphs_by_input_names(exported: Exported) -> None:
    """As a client does that knows the inputs and outputs, and nothing of this package."""
    checkpoint, artifact = exported()
    prefill, decode = (ort.InferenceSession(str(artifact.graph_path(stage))) for stage in ("prefill", "decode"))
    tokens = np.random.default_rng(0).integers(0, 97, (2, 12))
    empty = np.zeros((2, 2, 0, 36), np.float32)
    feed = {
        "input_ids": tokens[:, :11],
        "attention_mask": np.ones((2, 11), np.int64),
        "position_ids": np.tile(np.arange(11), (2, 1)),
        **{f"past_key_values.{layer}.{kind}": empty for layer in range(2) for kind in ("key", "value")},
    }
    names = [output.name for output in prefill.get_outputs()]
    out = dict(zip(names, prefill.run(None, feed), strict=True))
    feed = {
        "input_ids": tokens[:, 11:],
        "attention_mask": np.ones((2, 12), np.int64),
        "position_ids": np.full((2, 1), 11),
        **{name.replace("present", "past_key_values"): value for name, value in out.items() if name != "logits"},
    }
    logits = decode.run(["logits"], feed)[0]
    reference, _ = load_model(checkpoint, torch.float64)(torch.from_numpy(tokens))
    np.testing.assert_allclose(logits[:, 0], reference[:, -1].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tied"), [("float16", False), ("bfloat16", True)])
def test_half_precision_artifacts_are_as_exact_as_pytorch(exported: Exported, dtype: str, tied: bool) -> None:
    checkpoint, artifact = exported(dtype=dtype, tie_word_embeddings=tied)
    session = open_session(artifact, "torch" if dtype == "bfloat16" else "onnxruntime")
    tokens = np.random.default_rng(0).integers(0, 97, (1, 70))
    exact = load_model(checkpoint, torch.float64)(torch.from_numpy(tokens))[0][:, -1].numpy()
    plain = load_model(checkpoint, getattr(torch, dtype))(torch.from_numpy(tokens))[0][:, -1].numpy()
    logits = session.prefill(tokens, session.empty_cache())[:, -1]
    assert np.linalg.norm(logits - exact) <= 4 * np.linalg.norm(plain - exact)
    rounded = torch.from_numpy(logits).to(getattr(torch, dtype)).float().numpy()
    assert (rounded != logits).mean() > 0.9  # the head's multiplication was in float32
    stored = [e.value for t in load(artifact, "decode").graph.initializer for e in t.external_data if e.key == "length"]
    assert sum(map(int, stored)) == 2 * sum(p.numel() for p in load_model(checkpoint).parameters())


def test_exports_are_reproducible(exported: Exported, tmp_path: Path) -> None:
    checkpoint, artifact = exported(cache=None)  # every form
    again = export(checkpoint, tmp_path / "again")
    assert again.manifest.files == artifact.manifest.files
