"""The static cache computes what the growing one does, in memory that stays where it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes.torch.session import TorchSession

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture(params=["lucid", "llama", "opset 23"])
def pair(request: pytest.FixtureRequest, exported: Exported) -> tuple[Session, Session]:
    """The float64 reference, and the static session."""
    changes = {"opset": 23} if request.param == "opset 23" else {"attention_type": request.param}
    checkpoint, artifact = exported(cache="static", **changes)
    return TorchSession(load_model(checkpoint, torch.float64)), open_session(artifact)


def tokens(count: int) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, 97, (2, count))
    ids[1, 30:80] = 5
    return ids


def close(got: np.ndarray, exact: np.ndarray) -> None:
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - exact) <= 1e-4 * np.linalg.norm(exact)


def test_static_decode_agrees_across_moves_and_prefills(pair: tuple[Session, Session]) -> None:
    """Left padding, decoding past the first buffer, prefill after decode, decode again."""
    reference, static = pair
    ids = tokens(330)
    mask = np.ones((2, 20), bool)
    mask[0, :6] = False
    exact_cache, cache = reference.empty_cache(2), static.empty_cache(2)
    close(static.prefill(ids[:, :20], cache, mask), reference.prefill(ids[:, :20], exact_cache, mask))
    for position in [*range(20, 300), *range(310, 330)]:
        if position == 310:
            part = ids[:, 300:310]
            close(static.prefill(part, cache, chunk=3), reference.prefill(part, exact_cache))
        part = ids[:, position : position + 1]
        close(static.decode(part, cache), reference.decode(part, exact_cache))
    for ours, exact in zip(static.layer_arrays(cache), reference.layer_arrays(exact_cache), strict=True):
        close(ours[0], exact[0])
        close(ours[1], exact[1])


def test_buffers_stay_where_they_are_and_are_written_in_place(pair: tuple[Session, Session]) -> None:
    _, static = pair
    cache = static.empty_cache(1)
    static.prefill(tokens(10)[:1], cache)
    static.decode(np.array([[3]]), cache)
    before = [(k.ctypes.data, y.ctypes.data) for k, y in cache.layers]
    contents = [(k.copy(), y.copy()) for k, y in cache.layers]
    for _ in range(20):
        static.decode(np.array([[4]]), cache)
    assert [(k.ctypes.data, y.ctypes.data) for k, y in cache.layers] == before
    for now, then in zip(cache.layers, contents, strict=True):
        for array, old in zip(now, then, strict=True):
            written = np.flatnonzero((array != old).any(axis=(0, 1, 3)))
            assert written.tolist() == list(range(11, 31))  # the twenty new rows and no other


def test_two_caches_of_one_session_do_not_mix(pair: tuple[Session, Session]) -> None:
    reference, static = pair
    ids = tokens(60)[1:]
    first, second, exact = static.empty_cache(1), static.empty_cache(1), reference.empty_cache(1)
    static.prefill(ids[:, :20], first)
    static.prefill(ids[:, 20:40], second)
    reference.prefill(ids[:, :20], exact)
    for position in range(40, 60):
        part = ids[:, position : position + 1]
        static.decode(part, second)
        close(static.decode(part, first), reference.decode(part, exact))


def test_a_fork_goes_on_alone(pair: tuple[Session, Session]) -> None:
    reference, static = pair
    cache, exact = static.empty_cache(1), reference.empty_cache(1)
    for session, own in ((static, cache), (reference, exact)):
        session.prefill(tokens(9)[:1], own)
        session.decode(np.array([[1]]), own)
    fork = static.fork(cache)
    static.decode(np.array([[7]]), cache)
    close(static.decode(np.array([[9]]), fork), reference.decode(np.array([[9]]), exact))


def test_the_decode_graph_uses_tensor_scatter(exported: Exported) -> None:
    _, artifact = exported(cache="static")
    model = onnx.load(str(artifact.graph_path("decode")), load_external_data=False)
    assert [item.version for item in model.opset_import if item.domain == ""] == [24]
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("TensorScatter") == 4 and "ScatterRow" not in operators
    onnx.checker.check_model(str(artifact.graph_path("decode")), full_check=True)
    prefill = onnx.load(str(artifact.graph_path("prefill")), load_external_data=False)
    assert [item.version for item in prefill.opset_import if item.domain == ""] == [23]
