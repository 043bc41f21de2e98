"""A cache's tensors on a device: what is sent comes back, whatever the pitch, and nothing else is written."""

from __future__ import annotations

import numpy as np
import pytest

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.runtimes.tensorrt.device_cache import DeviceCaches
from lucid_deploy.runtimes.tensorrt.device_memory import MemoryPool
from tests.runtimes.tensorrt.fake_gpu import FakeDevice

MOST, BATCH, TOKENS = 9, 2, 5
KEY, STATE = CacheTensor("key", "float32", (3, 4)), CacheTensor("state", "float16", (6,), "state")
LAYOUT = ((KEY, STATE), (KEY,))
ROWS = np.arange(BATCH * 3 * TOKENS * 4, dtype=np.float32).reshape(BATCH, 3, TOKENS, 4)


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture
def caches(device: FakeDevice) -> DeviceCaches:
    return DeviceCaches(LAYOUT, device, MemoryPool(device), MOST)


def test_rows_survive_every_pitch(caches: DeviceCaches, device: FakeDevice) -> None:
    """Between a head's last token and the next head's first one there are zeros."""
    sent = caches.send(KEY, ROWS, BATCH, TOKENS)
    wide = caches.moved(KEY, sent, BATCH, TOKENS, MOST)
    whole = device.at(wide.address, BATCH * 3 * MOST * 16).view(np.float32).reshape(BATCH, 3, MOST, 4)
    assert wide.pitch == MOST and np.array_equal(whole[:, :, :TOKENS], ROWS) and not whole[:, :, TOKENS:].any()
    for tensor in (sent, wide):
        assert np.array_equal(caches.fetch(KEY, tensor, BATCH, TOKENS), ROWS)
        assert np.array_equal(caches.fetch(KEY, tensor, BATCH, TOKENS - 2), ROWS[:, :, : TOKENS - 2])
    assert caches.packed(KEY, sent, BATCH, TOKENS) is sent


def test_a_state_has_no_pitch(caches: DeviceCaches) -> None:
    values = np.arange(BATCH * 6, dtype=np.float16).reshape(BATCH, 6)
    sent = caches.send(STATE, values, BATCH, TOKENS)
    assert caches.packed(STATE, sent, BATCH, TOKENS - 1) is sent
    copy = caches.moved(STATE, sent, BATCH, TOKENS, MOST)
    assert copy.address != sent.address and np.array_equal(caches.fetch(STATE, copy, BATCH, TOKENS), values)


def test_all_blocks_of_a_kind_are_alike(caches: DeviceCaches) -> None:
    """So the pool hands them out again, whatever the length; an empty tensor takes next to nothing."""
    sizes = {caches.new(KEY, BATCH, tokens).block.size for tokens in (1, TOKENS, MOST)}
    assert sizes == {BATCH * KEY.size(MOST)} and caches.new(KEY, BATCH, 0).block.size < BATCH * KEY.size(MOST)


def test_tensors_are_gone_through_by_layer_and_name(caches: DeviceCaches) -> None:
    layers = caches.each(lambda layout, _: caches.new(layout, BATCH, TOKENS), [(0, 0), (0,)])
    found = caches.named("present", layers)
    assert [name for name, *_ in found] == ["present.0.key", "present.0.state", "present.1.key"]
    assert [layout for _, layout, _ in found] == [KEY, STATE, KEY]
    assert [tensor for *_, tensor in found] == [*layers[0], *layers[1]]
