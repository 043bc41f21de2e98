"""OpenVINO with a static cache of opset 23: float64's logits, in buffers that stay where they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.batching import Batcher, Request, Token
from lucid_deploy.cli import main
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.generate import Generation
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.conftest import MIXED

pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture
def small(exported: Exported) -> tuple[Path, Artifact]:
    """A LUCID layer, one of standard attention and one over a window, which keeps a ring."""
    return exported(inline=True, cache="static", opset=23, **MIXED)


@pytest.fixture
def pair(small: tuple[Path, Artifact]) -> tuple[Session[Any], Session[Any]]:
    """The float64 reference, and the session."""
    checkpoint, artifact = small
    exact = TorchSession(load_model(checkpoint, torch.float64, implementation="reference"))
    return exact, open_session(artifact, "openvino", threads=1)


def close(got: np.ndarray, exact: np.ndarray) -> None:
    assert np.linalg.norm(got - exact) <= 1e-5 * np.linalg.norm(exact)


def test_it_agrees_with_float64(pair: tuple[Session[Any], Session[Any]]) -> None:
    """Left padding, a buffer that is used up, prefill after decode, a row that waits."""
    exact, static = pair
    rng = np.random.default_rng(5)
    ids = rng.choice(rng.integers(0, 97, 9), (2, 290))  # repeated tokens: their keys resemble each other
    mask = np.ones(ids.shape, bool)
    mask[0, :6] = False
    mask[1, [245, 250]] = False  # waits
    caches = exact.empty_cache(2), static.empty_cache(2)
    start = 0
    for size in (240, *([1] * 20), 7, *([1] * 5)):
        part = slice(start, start + size)
        run = "decode" if size == 1 else "prefill"
        wanted, found = (
            getattr(session, run)(ids[:, part], cache, mask=mask[:, part])
            for session, cache in zip(pair, caches, strict=True)
        )
        rows = mask[:, part].any(axis=1)
        close(found[rows], wanted[rows])
        start += size
    for ours, theirs in zip(static.layer_arrays(caches[1]), exact.layer_arrays(caches[0]), strict=True):
        assert ours[0].shape == theirs[0].shape


def test_buffers_stay_where_they_are(pair: tuple[Session[Any], Session[Any]]) -> None:
    static = pair[1]
    cache = static.empty_cache()
    static.prefill(np.array([[5, 9, 9, 40]]), cache)
    static.decode(np.array([[3]]), cache)
    fork = static.fork(cache)
    before = [[array.ctypes.data for array in layer] for layer in cache.layers]
    logits = static.decode(np.array([[7]]), cache)
    for token in (4, 8, 8):
        static.decode(np.array([[token]]), cache)
    assert [[array.ctypes.data for array in layer] for layer in cache.layers] == before
    np.testing.assert_array_equal(static.decode(np.array([[7]]), fork), logits)


@pytest.mark.parametrize("cache_dtype", ["float16", "int8"])
def test_other_types_are_stored_as_onnxruntime_stores_them(exported: Exported, cache_dtype: str) -> None:
    artifact = exported(inline=True, cache="static", opset=23, num_hidden_layers=1, cache_dtype=cache_dtype)[1]
    found = []
    for runtime in ("openvino", "onnxruntime"):
        session = open_session(artifact, runtime, threads=1)
        cache = session.empty_cache()
        session.prefill(np.array([[5, 9, 9, 40, 5, 9]]), cache)
        found.append(np.concatenate([session.decode(np.array([[token]]), cache) for token in (9, 9, 40)], axis=1))
        assert cache.layers[0][0].dtype == cache_dtype
    close(found[0], found[1])


def test_a_batch_answers_as_each_alone(pair: tuple[Session[Any], Session[Any]]) -> None:
    """Requests of other lengths share the buffers, which batching binds."""
    static = pair[1]
    requests = [Request(prompt, 6, stop_at_eos=False) for prompt in ([5, 9, 9, 40], [7] * 11, [3, 4])]
    batcher, tokens = Batcher(static, 3), {}
    numbers = [batcher.submit(request) for request in requests]
    while not batcher.idle:
        for event in batcher.step():
            if isinstance(event, Token):
                tokens.setdefault(event.request, []).append(event.token)
    for number, request in zip(numbers, requests, strict=True):
        assert tokens[number] == list(Generation(static, request.prompt_ids, 6, request.sampling, stop_at_eos=False))


def test_it_is_verified(small: tuple[Path, Artifact]) -> None:
    run = CliRunner().invoke(main, ["verify", str(small[1].directory), "--runtime", "openvino", "--quick"])
    assert run.exit_code == 0, run.output


def test_opset_24_is_refused(exported: Exported) -> None:
    artifact = exported(inline=True, cache="static", num_hidden_layers=1)[1]
    with pytest.raises(LucidError, match=r"cannot write into the static cache of .*TensorScatter. .* --opset 23\.$"):
        open_session(artifact, "openvino")
