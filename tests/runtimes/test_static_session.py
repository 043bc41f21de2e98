"""What sessions with a static cache share: buffers grow, hold each token once, and waiting rows keep their ring."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

from lucid_deploy.model.config import parse_config
from lucid_deploy.runtimes import static_session
from lucid_deploy.runtimes.session import Array
from lucid_deploy.runtimes.static_session import BoundStep, StaticSession
from tests.conftest import MIXED, TINY


class Recorder(StaticSession):
    """Writes each token's id wherever its row goes, and counts how often memory was bound."""

    def __init__(self) -> None:
        super().__init__(parse_config({**TINY, **MIXED}, "test"), "float32", "recorder")
        self.bound: list[int] = []

    def _run_growing(self, stage: str, tokens: Any, layers: Any, keep: int) -> Any:
        raise NotImplementedError

    def bind(self, layers: Any, mask: Array, input_ids: Array, positions: Array, length: Array) -> BoundStep:
        self.bound.append(mask.shape[1])
        pairs = [pair for each in zip(self.layout, layers, strict=True) for pair in zip(*each, strict=True)]
        replaced = [(buffer, np.empty_like(buffer)) for tensor, buffer in pairs if tensor.sort != "rows"]
        rows = [buffer for tensor, buffer in pairs if tensor.sort == "rows"]
        return BoundStep((rows, input_ids, length), replaced)

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
    assert session.bound == [256, 512]  # of 267 tokens
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


def test_a_fork_keeps_tokens_that_are_cut_from_the_other(session: Recorder) -> None:
    session.layout, session.layers = session.layout[:2], session.layers[:2]  # without rings nothing moves
    cache = session.empty_cache()
    session.decode(np.array([[5]]), cache)
    fork = session.fork(cache)
    session.truncate(cache, 0)
    session.decode(np.array([[6]]), cache)
    keys = [session.layer_arrays(each)[0][0][0, 0, :, 0].tolist() for each in (cache, fork)]
    assert keys == [[6], [5]]


def test_going_back_moves_nothing_without_rings(session: Recorder) -> None:
    session.layout = session.layout[:2]
    session.layers = session.layers[:2]
    cache = session.empty_cache()
    for token in (5, 6, 7):
        session.decode(np.array([[token]]), cache)
    session.truncate(cache, 1)
    session.decode(np.array([[9]]), cache)
    assert session.layer_arrays(cache)[0][0][0, 0, :, 0].tolist() == [5, 9] and session.bound == [256]


def test_buffers_that_cannot_be_made_longer_lose_nothing(session: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some layers had moved, and what was bound wrote into their old buffers, from which the next move did not copy."""
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


def test_old_buffers_go_layer_by_layer(session: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was bound held all of them while the new ones were made."""
    cache = session.empty_cache()
    for token in range(256):
        session.decode(np.array([[token % 97]]), cache)
    old = weakref.ref(cache.layers[0][0])
    make, alive = static_session.new_buffer, []

    def noting(*arguments: Any) -> Array:
        alive.append(old() is not None)
        return make(*arguments)

    monkeypatch.setattr(static_session, "new_buffer", noting)
    session.decode(np.array([[1]]), cache)
    assert alive[0] and not alive[-1]
