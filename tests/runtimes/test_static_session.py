"""A static cache: buffers hold each token once, move only when they are full, and give a growing cache's results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.runtimes import Session, open_session
from lucid_deploy.runtimes import graph_sessions as static_session
from lucid_deploy.runtimes.graph_sessions import BoundStep, StaticSession
from lucid_deploy.runtimes.session import Array
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.conftest import MIXED, TINY


class Recorder(StaticSession):
    """Writes each token's id into the token's cache rows, and records the buffers' length at each binding."""

    def __init__(self) -> None:
        super().__init__(parse_config({**TINY, **MIXED}, "test"), "float32", "recorder")
        self.bound: list[int] = []

    def _run_growing(self, tokens: Any, layers: Any, keep: int) -> Any:
        raise NotImplementedError

    def bind_arrays(self, inputs: dict[str, Array], layers: Any, shared: bool = False) -> Any:
        self.bound.append(inputs["attention_mask"].shape[1])
        pairs = [pair for each in zip(self.layout, layers, strict=True) for pair in zip(*each, strict=True)]
        replaced = [(buffer, np.empty_like(buffer)) for tensor, buffer in pairs if tensor.sort != "rows"]
        rows = [buffer for tensor, buffer in pairs if tensor.sort == "rows"]
        return (rows, inputs["input_ids"], inputs["cache_length"]), replaced

    def run_bound(self, binding: BoundStep) -> Array:
        rows, ids, length = binding.binding
        each = np.arange(len(length))
        for buffer in rows:
            buffer[each, :, length] = ids[:, :, None]
        for buffer, output in binding.replaced:
            output[...] = ids[:, :, None, None]
            buffer[...] = output
        return np.zeros((len(length), 1, 97), np.float32)


@pytest.fixture
def session() -> Recorder:
    return Recorder()


def test_buffers_grow_and_hold_every_token(session: Recorder) -> None:
    cache = session.empty_cache(2)
    for token in range(1, 90):
        for _ in range(3):
            session.decode(np.array([[token], [token + 1]]) % 97, cache)
    assert session.bound == [256, 512]  # for 267 tokens
    wanted = np.repeat(np.arange(1, 90), 3)
    keys = session.layer_arrays(cache)[0][0]
    assert keys.shape == (2, 2, 267, 36)
    np.testing.assert_array_equal(keys[0, 1, :, 5], wanted)
    np.testing.assert_array_equal(keys[1, 0, :, 0], wanted + 1)


def test_a_row_that_waits_keeps_its_ring(session: Recorder) -> None:
    cache = session.empty_cache(2)
    session.decode(np.array([[5], [6]]), cache)
    session.decode(np.array([[7], [8]]), cache, mask=np.array([[True], [False]]))
    ring = cache.layers[2][0]
    assert (ring[0] == 7).all() and (ring[1] == 6).all()


def test_a_fork_has_memory_of_its_own(session: Recorder) -> None:
    cache = session.empty_cache()
    session.decode(np.array([[5]]), cache)
    fork = session.fork(cache)
    session.decode(np.array([[6]]), cache)
    session.decode(np.array([[7]]), fork)
    keys = [session.layer_arrays(each)[0][0][0, 0, :, 0].tolist() for each in (cache, fork)]
    assert keys == [[5, 6], [5, 7]]


def test_a_fork_keeps_tokens_that_are_cut_from_the_original(session: Recorder) -> None:
    session.layout, session.layers = session.layout[:2], session.layers[:2]  # without rings, truncation copies nothing
    cache = session.empty_cache()
    session.decode(np.array([[5]]), cache)
    fork = session.fork(cache)
    session.truncate(cache, 0)
    session.decode(np.array([[6]]), cache)
    keys = [session.layer_arrays(each)[0][0][0, 0, :, 0].tolist() for each in (cache, fork)]
    assert keys == [[6], [5]]


def test_truncation_without_rings_keeps_the_bound_buffers(session: Recorder) -> None:
    session.layout = session.layout[:2]
    session.layers = session.layers[:2]
    cache = session.empty_cache()
    for token in (5, 6, 7):
        session.decode(np.array([[token]]), cache)
    session.truncate(cache, 1)
    session.decode(np.array([[9]]), cache)
    assert session.layer_arrays(cache)[0][0][0, 0, :, 0].tolist() == [5, 9] and session.bound == [256]


def test_no_token_is_lost_if_buffers_cannot_be_made_longer(session: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory ran out after some layers were moved; steps must not go on writing into the old buffers of these."""
    session.layout, session.layers = session.layout[:2], session.layers[:2]
    cache = session.empty_cache()
    for token in range(256):
        session.decode(np.array([[token % 97]]), cache)
    make, made = static_session.new_buffer, iter(range(100))

    def failing(*arguments: Any) -> Array:
        if next(made) == 3:
            raise MemoryError
        return make(*arguments)

    monkeypatch.setattr(static_session, "new_buffer", failing)
    with pytest.raises(MemoryError):
        session.decode(np.array([[1]]), cache)
    session.truncate(cache, 200)
    for token in range(200, 300):
        session.decode(np.array([[token % 89]]), cache)
    wanted = [token % 97 for token in range(200)] + [token % 89 for token in range(200, 300)]
    for layer in session.layer_arrays(cache):
        assert [rows[0, 0, :, 0].tolist() for rows in layer] == [wanted] * 2


Exported = Callable[..., tuple[Path, Artifact]]


ROOM = 16


def step(
    checkpoint: Path, dtype: torch.dtype, prompt: np.ndarray, token: np.ndarray
) -> tuple[np.ndarray, list[list[np.ndarray]]]:
    """Return PyTorch's logits after a prompt and one token, ``(1, V)``, and every layer's rows, ``(Hkv, N, D)``."""
    session = TorchSession(load_model(Checkpoint(checkpoint), dtype, implementation="reference"))
    cache = session.empty_cache(1)
    session.prefill(prompt, cache)
    logits = session.decode(token[None], cache)[0].astype(np.float64)
    return logits, [[np.asarray(array[0], np.float64) for array in layer] for layer in session.layer_arrays(cache)]


def test_steps_in_bound_buffers_agree_with_pytorch(exported: Exported) -> None:
    """Two rows of unequal lengths; the step changes no other column of the buffers."""
    checkpoint, artifact = exported(cache="static")
    session = open_session(artifact)
    decoding = session.in_place
    assert decoding is not None and decoding.layout == session.layout
    prompts = [np.array([[5, 5, 5, 8, 5, 5, 9]]), np.array([[5, 5, 3]])]
    caches = [session.empty_cache(1) for _ in prompts]
    for prompt, cache in zip(prompts, caches, strict=True):
        session.prefill(prompt, cache)
    buffers = [
        tuple(np.zeros((2, x.shape[1], ROOM, x.shape[3]), x.dtype) for x in layer)
        for layer in session.layer_arrays(caches[0])
    ]
    for row, cache in enumerate(caches):
        for layer, held in zip(buffers, session.layer_arrays(cache), strict=True):
            for buffer, array in zip(layer, held, strict=True):
                buffer[row, :, : cache.length] = array[0]
    before = [tuple(buffer.copy() for buffer in layer) for layer in buffers]
    length = np.array([cache.length for cache in caches])
    ids, mask = np.array([[7], [5]]), np.ones((2, ROOM), np.int64)
    bound = decoding.bind(buffers, mask, length, np.zeros(2, np.int64), 1)
    bound.input_ids[:], bound.positions[:] = ids, length[:, None]
    logits = decoding.run_bound(bound)
    for row, cache in enumerate(caches):
        steps = [step(checkpoint, dtype, prompts[row], ids[row]) for dtype in (torch.float64, torch.float32)]
        (exact, rows), (rounded, rounded_rows) = steps
        assert np.linalg.norm(logits[row] - exact) <= 4 * np.linalg.norm(rounded - exact)
        session.decode(ids[row : row + 1], cache)
        for i, (layer, old) in enumerate(zip(buffers, before, strict=True)):
            for j, (buffer, then) in enumerate(zip(layer, old, strict=True)):
                allowed = 4 * np.linalg.norm(rounded_rows[i][j] - rows[i][j])
                assert np.linalg.norm(buffer[row, :, : cache.length] - rows[i][j]) <= allowed
                assert np.array_equal(buffer[row, :, cache.length :], then[row, :, cache.length :])
                assert np.array_equal(buffer[row, :, : cache.length - 1], then[row, :, : cache.length - 1])


@pytest.fixture(params=["lucid", "opset 23"])
def pair(request: pytest.FixtureRequest, exported: Exported) -> tuple[Session, Session]:
    """The float64 reference, and the static session."""
    changes = {"opset": 23} if request.param == "opset 23" else {}
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
