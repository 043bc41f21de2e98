"""The step that decodes into a static cache: run as it is at first, then recorded as a CUDA graph and replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lucid_deploy.runtimes.session import Array
from lucid_deploy.runtimes.tensorrt.device import Device


@dataclass(frozen=True)
class StateCopy:
    """Where a state is read and where the next one is written: an engine cannot write it over the one it reads.

    Attributes:
        read: Address of what the engine reads, ``(B, …)``.
        written: Address of what it writes, of the same shape.
        size: Bytes of one row of the batch.
    """

    read: int
    written: int
    size: int


class DecodeStep:
    """Runs the decode engine on buffers that stay where they are; new states then go where the next step reads them.

    The engine counts the new column of every row as a token. For rows of K and Y the next step's mask corrects that,
    for a state nothing does, so the states of rows that wait are not copied. A recorded graph copies those of all rows:
    where a row waits, the engine runs without it.

    Args:
        device: The GPU.
        batch: Rows.
        states: The cache's states.
    """

    def __init__(self, device: Device, batch: int, states: Sequence[StateCopy]) -> None:
        self._device, self._batch, self._states = device, batch, states
        self._graph: Any = None
        self._has_run = False

    def run(self, execute: Callable[[], None], tokens: Array) -> None:
        """Queue the step.

        Args:
            execute: Queues the engine, always the same.
            tokens: Bool ``(B,)``, False for rows that only wait for others.

        Raises:
            LucidError: The engine fails.
        """

        def queue() -> None:
            execute()
            self._copy_states(tokens)

        if not self._has_run or (self._states and not tokens.all()):
            queue()  # TensorRT settles what depends on shapes in the first run, which cannot be recorded
        else:
            if self._graph is None:
                self._graph = self._device.record(queue)
            self._device.replay(self._graph)
        self._has_run = True

    def drop(self) -> None:
        """Forget the recorded graph."""
        if self._graph is not None:
            self._device.drop(self._graph)
        self._graph = None

    def _copy_states(self, tokens: Array) -> None:
        """Queue the copies of the rows with a token; of all of them in one copy a state."""
        parts = [(0, self._batch)] if tokens.all() else [(int(row), 1) for row in tokens.nonzero()[0]]
        for state in self._states:
            for first, count in parts:
                start, size = first * state.size, count * state.size
                self._device.copy_rows(state.read + start, size, state.written + start, size, size, 1)
