"""What a mixed model's cache takes at 32,768 tokens, allocated and read back after a step, against ``inspect``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.cache.layout import held
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.cli import main
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.session import Cache, Session
from tests.conftest import MIXED

pytestmark = pytest.mark.slow  # exports

TOKENS = 32_768
SHAPE: dict[str, Any] = {**MIXED, "max_position_embeddings": TOKENS}


def estimate(artifact: Artifact) -> dict[str, Any]:
    words = ["inspect", str(artifact.directory), "--context", str(TOKENS), "--json", "-"]
    memory: dict[str, Any] = json.loads(CliRunner().invoke(main, words).output)["memory"]
    return memory


def filled(session: Session[Any]) -> Cache[Any]:
    """Return a cache of 32,768 tokens, the last of which was decoded."""
    past = TOKENS - 1
    arrays = [
        tuple(np.zeros(tensor.batch_shape(1, past), np.float32) for tensor in decoded_layout(layer))
        for layer in session.layout
    ]
    cache = session.cache_from_arrays(arrays, np.ones((1, past), bool))
    assert np.isfinite(session.decode(np.array([[5]]), cache)).all()
    return cache


def tensor_bytes(value: Any) -> int:
    return int(value.nbytes if isinstance(value, np.ndarray) else value.numpy().nbytes)


@pytest.mark.parametrize("runtime", ["onnxruntime", "torch"])
@pytest.mark.parametrize("cache_dtype", ["auto", "int8"])
def test_a_growing_cache_takes_what_inspect_says(exported: Any, runtime: str, cache_dtype: str) -> None:
    _, artifact = exported(cache_dtype=cache_dtype, **SHAPE)
    cache = filled(open_session(artifact, runtime))
    found = sum(tensor_bytes(tensor) for layer in cache.layers for tensor in layer)
    assert found == estimate(artifact)["cache"]


def test_a_static_cache_takes_what_inspect_says_and_a_spare_eighth(exported: Any) -> None:
    _, artifact = exported(cache="static", **SHAPE)
    session = open_session(artifact)
    cache = filled(session)
    pairs = [pair for each in zip(session.layout, cache.layers, strict=True) for pair in zip(*each, strict=True)]
    wanted = estimate(artifact)["cache"]
    assert sum(held(tensor, buffer, TOKENS).nbytes for tensor, buffer in pairs) == wanted
    assert wanted <= sum(buffer.nbytes for _, buffer in pairs) <= wanted * 9 / 8


def test_a_window_stops_growing_and_the_rest_does_not(exported: Any) -> None:
    """By hand: two layers with a row of K and V a token, one with 9 of them; 2 heads of width 36, 4 bytes each."""
    memory = estimate(exported(**SHAPE)[1])
    row = 2 * 2 * 36 * 4
    assert memory["cache"] == row * (2 * TOKENS + 9)
    assert memory["cache_per_token"] == 2 * row
