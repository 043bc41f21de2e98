"""Run a stage of loaded engines: bind its inputs and outputs, queue it, and report why it failed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.session import Array
from lucid_deploy.runtimes.tensorrt.callbacks import explain
from lucid_deploy.runtimes.tensorrt.device import Device
from lucid_deploy.runtimes.tensorrt.device_cache import DeviceBlock, MemoryPool
from lucid_deploy.runtimes.tensorrt.manifest import EngineManifest


@dataclass(frozen=True)
class StateCopy:
    """The two buffers of a state: an engine cannot overwrite the state that it reads."""

    read: int  # address of the state before the step, (B, …)
    written: int  # address of the state after it, of the same shape
    size: int  # bytes of one row of the batch


class DecodeStep:
    """A decode step on buffers at fixed addresses, followed by copies of new states to where the next step reads.

    The new column of a sequence that waits is padding, but the engine counts it as a token. For cached K and Y the next
    step's mask corrects that. Nothing would correct a state, so a waiting sequence's is not copied. A recorded
    CUDA graph copies the states of all sequences, so a model with states does not use it while one waits.
    """

    def __init__(self, device: Device, batch: int, states: Sequence[StateCopy]) -> None:
        self._device, self._batch, self._states = device, batch, states
        self._graph: Any = None
        self._has_run = False

    def run(self, execute: Callable[[], None], tokens: Array) -> None:
        """Queue the engine with ``execute``; ``tokens``, bool ``(B,)``, is False for rows that only wait for others."""

        def queue() -> None:
            execute()
            self._copy_states(tokens)

        if not self._has_run or (self._states and not tokens.all()):
            queue()  # the first run sets up what depends on shapes, so it cannot be recorded
        else:
            if self._graph is None:
                self._graph = self._device.record(queue)
            self._device.replay(self._graph)
        self._has_run = True

    def drop(self) -> None:
        """Destroy the recorded CUDA graph, if there is one."""
        if self._graph is not None:
            self._device.drop(self._graph)
        self._graph = None

    def _copy_states(self, tokens: Array) -> None:
        """Queue copying the states of rows with a token: one per state if no row waits, else one per state and row."""
        parts = [(0, self._batch)] if tokens.all() else [(int(row), 1) for row in tokens.nonzero()[0]]
        for state in self._states:
            for first, count in parts:
                start, size = first * state.size, count * state.size
                self._device.copy_rows(state.read + start, size, state.written + start, size, size, 1)


Feed = dict[str, tuple[int, tuple[int, ...]]]  # address and shape of every input


@dataclass(frozen=True)
class Engines:
    """Loaded engines, and what a session needs to run them."""

    manifest: EngineManifest
    make_context: Callable[[str], Any]  # takes a stage; contexts of one engine share its weights
    tensors: dict[str, frozenset[str]]  # names of each stage's inputs and outputs; TensorRT drops unread inputs
    errors: list[str] = field(default_factory=list)  # TensorRT's, loading included; emptied when one is raised
    save: Callable[[], None] = lambda: None  # saves kernels compiled while engines ran, for the next start


class EngineContexts:
    """An execution context of each stage, and memory for its small inputs and outputs."""

    def __init__(self, engines: Engines, device: Device, pool: MemoryPool) -> None:
        self._engines, self._device, self._pool = engines, device, pool
        self._contexts = {stage: engines.make_context(stage) for stage in engines.manifest.engines}
        self._blocks: dict[str, DeviceBlock] = {}
        # Runs also at process exit. It refers to the contexts, which must be freed before their engines.
        self._end = weakref.finalize(self, _finish, self._contexts, engines.save)

    def __contains__(self, stage: str) -> bool:
        return stage in self._contexts

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return not self._end.alive

    def close(self) -> None:
        """Free the contexts, and save compiled kernels for the next start. At exit this happens without a call."""
        self._end()

    def bind(self, stage: str, feed: Feed, results: dict[str, int]) -> None:
        """Set the shapes and addresses of a stage's inputs, and the addresses of its outputs."""
        context, known = self._contexts[stage], self._engines.tensors[stage]
        for name, (address, shape) in feed.items():
            if name not in known:
                continue
            if not context.set_input_shape(name, shape):
                raise self._failed(stage, f"refuses the shape {shape} of {name}")
            context.set_tensor_address(name, address)
        for name, address in results.items():
            context.set_tensor_address(name, address)

    def execute(self, stage: str) -> None:
        """Queue a stage on the device's stream."""
        if not self._contexts[stage].execute_async_v3(self._device.stream):
            raise self._failed(stage, "fails")

    def upload(self, stage: str, arrays: dict[str, Array]) -> Feed:
        """Copy small inputs to the device, each to an address that changes only if it needs more memory."""
        feed: Feed = {}
        for name, array in arrays.items():
            address = self.room(f"{stage}.{name}", array.nbytes)
            self._device.upload(address, np.ascontiguousarray(array))
            feed[name] = (address, array.shape)
        return feed

    def room(self, name: str, size: int) -> int:
        """Return the address of the buffer of this name, after enlarging it to ``size`` bytes if it is smaller."""
        block = self._blocks.get(name)
        if block is None or block.size < size:  # a power of two, since a mask grows with every token
            block = self._blocks[name] = self._pool.take(1 << max(size - 1, 1).bit_length())
        return block.address

    def _failed(self, stage: str, what: str) -> LucidError:
        reason = explain(self._engines.errors)
        self._engines.errors.clear()
        return LucidError(f"The {stage} engine {what}: {reason}")


def _finish(contexts: dict[str, Any], save: Callable[[], None]) -> None:
    contexts.clear()
    save()
