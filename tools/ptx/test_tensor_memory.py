"""Which memory may be written once an MMA of tensor memory has been waited for."""

import numpy as np
import pytest

from tools.ptx.memory import Fault, SharedMemory
from tools.ptx.tensor_memory import Form, TensorMemory

FORM = Form(rows=64, columns=8, kind="f16", transposed=(False, False))
RIGHT = 6 << 61 | 16 << 32  # right factor's descriptor, at 0: eight columns of 16 numbers, 32 bytes each
FIRST, SECOND = 1024, 1032  # barriers


@pytest.fixture
def shared() -> SharedMemory:
    return SharedMemory(2048, 128)


@pytest.fixture
def memory(shared: SharedMemory) -> TensorMemory:
    found = TensorMemory(shared)
    found.allocate(64)
    for barrier in (FIRST, SECOND):
        found.make_barrier(barrier, 1)
    return found


def write(shared: SharedMemory) -> None:
    shared.write(np.array([64]), np.array([[5]], np.uint32), np.array([1]))


def store(memory: TensorMemory) -> None:
    memory.store(np.full(128, 32, np.uint32), 0, np.zeros((128, 8), np.uint32))


def multiply(memory: TensorMemory, to: int, barrier: int) -> None:
    memory.multiply(to, 32, RIGHT, False, FORM, left_here=True)
    memory.commit(barrier)


def test_if_all_threads_have_waited_writing_needs_no_barrier(memory: TensorMemory, shared: SharedMemory) -> None:
    multiply(memory, 0, FIRST)
    assert memory.has_ended(FIRST, parity=0, by_all=True)
    write(shared)


def test_if_some_threads_have_waited_writing_needs_a_barrier(memory: TensorMemory, shared: SharedMemory) -> None:
    multiply(memory, 0, FIRST)
    assert memory.has_ended(FIRST, parity=0, by_all=False)
    with pytest.raises(Fault, match="with no barrier between them"):
        write(shared)
    shared.barriers += 1
    shared.warp_barriers += 1
    write(shared)


def test_a_barrier_tracks_earlier_mmas_that_other_barriers_track_too(memory: TensorMemory) -> None:
    """``tcgen05.commit`` tracks all prior operations of the thread (PTX ISA)."""
    multiply(memory, 0, FIRST)
    multiply(memory, 16, SECOND)
    with pytest.raises(Fault, match="not been waited for"):
        store(memory)
    assert memory.has_ended(SECOND, parity=0, by_all=True)
    store(memory)
    assert memory.has_ended(FIRST, parity=0, by_all=True)
    memory.end_barrier(FIRST)
    memory.end_barrier(SECOND)


def test_a_barrier_does_not_track_mmas_started_after_its_commit(memory: TensorMemory, shared: SharedMemory) -> None:
    multiply(memory, 0, FIRST)
    multiply(memory, 16, SECOND)
    assert memory.has_ended(FIRST, parity=0, by_all=True)
    with pytest.raises(Fault, match="not been waited for"):
        store(memory)
    with pytest.raises(Fault, match="while an MMA that has not been waited for reads it"):
        write(shared)
    with pytest.raises(Fault, match="is invalidated before it has been waited for"):
        memory.end_barrier(SECOND)
