"""Device memory is used again, and goes back when nobody holds it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtimes.tensorrt.device_memory import DeviceTensor, MemoryPool
from lucid_deploy.runtimes.tensorrt.session import TensorRtSession
from tests.runtimes.tensorrt.fake_gpu import FakeDevice, fake_engines

pytestmark = pytest.mark.usefixtures("own_garbage")
Exported = Callable[..., tuple[Path, Artifact]]


def test_memory_goes_back_to_the_device_with_the_session(exported: Exported) -> None:
    artifact, device = exported()[1], FakeDevice()
    session = TensorRtSession(artifact, fake_engines(artifact, device, max_context=64)[0], device)
    cache = session.empty_cache(1)
    session.prefill(np.array([[1, 2, 3]]), cache)
    assert device.in_use() > 0
    del session, cache
    gc.collect()
    assert device.in_use() == 0


def test_a_block_that_nobody_holds_is_handed_out_again() -> None:
    device = FakeDevice()
    pool = MemoryPool(device)
    first, other = pool.take(1000), pool.take(1000)
    assert first.address != other.address and device.allocated == 2
    address = first.address
    del first
    gc.collect()
    assert pool.take(1000).address == address and device.allocated == 2
    assert pool.take(2000).address not in (address, other.address)


def test_an_empty_tensor_has_an_address_of_its_own() -> None:
    pool = MemoryPool(FakeDevice())
    blocks = [pool.take(0), pool.take(0)]
    assert len({block.address for block in blocks}) == 2 and all(block.size > 0 for block in blocks)
    assert DeviceTensor(blocks[0], 3).address == blocks[0].address


def test_a_pool_gives_all_its_memory_back() -> None:
    device = FakeDevice()
    pool = MemoryPool(device)
    blocks = [pool.take(size) for size in (10, 5000, 5000)]
    assert device.in_use() == 3
    del blocks, pool
    gc.collect()
    assert device.in_use() == 0
