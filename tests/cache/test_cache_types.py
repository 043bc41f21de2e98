"""Caches in float16, int8 and fp8: onnxruntime stores and computes what PyTorch does, in every kind of call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.torch.session import TorchSession

MakeArtifact = Callable[..., tuple[Path, Artifact]]


@pytest.fixture
def cached(exported: MakeArtifact) -> MakeArtifact:
    """Return a function giving (checkpoint, artifact) by model type, cache type and kind of cache."""

    def get(dtype: str, cache_dtype: str, cache: str) -> tuple[Path, Artifact]:
        return exported(dtype, cache=cache, cache_dtype=cache_dtype)

    return get


def tokens() -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, 97, (2, 100))
    ids[1, 40:80] = 11
    return ids


def run(session: Session[Any], schedule: str) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Padded rows; prefill at once, in chunks, or token by token, then a few steps. Return logits and K, Y."""
    ids, mask = tokens(), np.ones((2, 100), bool)
    mask[0, :6] = False
    cache = session.empty_cache(2)
    prompt = {"one shot": 94, "chunks": 94, "by token": 60}[schedule]
    session.prefill(ids[:, :prompt], cache, mask[:, :prompt], chunk=17 if schedule == "chunks" else None)
    for position in range(prompt, 100):
        logits = session.decode(ids[:, position : position + 1], cache)
    return logits, session.layer_arrays(cache)


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    assert np.isfinite(got).all()
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


CASES = [
    ("float32", "int8", "static", "by token"),
    ("float16", "fp8", "growing", "chunks"),
]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_onnxruntime_rounds_as_pytorch_does(cached: MakeArtifact, case: tuple[str, ...]) -> None:
    """Numbers on the edge between two codes may fall differently, a few in a thousand; everything else is the same."""
    schedule = case[3]
    checkpoint, artifact = cached(*case[:3])
    baseline = TorchSession(load_model(Checkpoint(checkpoint), getattr(torch, case[0])).store_cache_as(case[1]))
    exact = TorchSession(load_model(Checkpoint(checkpoint), torch.float64))
    candidate = open_session(artifact)
    assert candidate.cache_dtype == baseline.cache_dtype == artifact.manifest.cache_dtype == case[1]
    logits, layers = run(candidate, schedule)
    wanted, wanted_layers = run(baseline, schedule)
    reference, reference_layers = run(exact, schedule)
    share = 1.5 if case[0] == "float16" else 0.5  # of the baseline's own error: float16 arithmetic moves many codes
    assert error(logits, wanted) <= share * error(wanted, reference)
    for ours, theirs, true in zip(layers, wanted_layers, reference_layers, strict=True):
        for mine, other, target in zip(ours, theirs, true, strict=True):
            assert error(mine, other) <= share * error(other, target)
            assert error(mine, target) <= 1.1 * error(other, target)


@pytest.mark.parametrize("case", [case[:3] for case in CASES], ids="-".join)
def test_truncating_and_forking_keep_the_stored_form(cached: MakeArtifact, case: tuple[str, ...]) -> None:
    _, artifact = cached(*case)
    session = open_session(artifact)
    cache = session.empty_cache(2)
    session.prefill(tokens()[:, :30], cache)
    short = session.empty_cache(2)
    session.prefill(tokens()[:, :20], short)
    session.truncate(cache, 20)
    fork = session.fork(cache)
    following = tokens()[:, 20:21]
    wanted = session.decode(following, short)
    assert error(session.decode(following, cache), wanted) < 1e-5
    assert error(session.decode(following, fork), wanted) < 1e-5


def test_what_does_not_go_together_is_refused(cached: MakeArtifact, tmp_path: Path) -> None:
    _, artifact = cached("float32", "int8", "growing")
    with pytest.raises(LucidError, match="--cache-dtype auto"):
        open_session(artifact, provider="cuda")
    manifest = artifact.path("lucid.json").read_text()
    copy = tmp_path / "damaged"
    copy.mkdir()
    for name in (*artifact.manifest.files, "lucid.json"):
        (copy / name).write_bytes(artifact.path(name).read_bytes())
    (copy / "lucid.json").write_text(manifest.replace('"cache_dtype": "int8"', '"cache_dtype": "int3"'))
    with pytest.raises(LucidError, match=r"is damaged: .*cache_dtype"):
        open_artifact(copy)
