"""onnxruntime with a static cache: buffers bound once, each new row written in place.

Prefill works on growing tensors. The first decode step moves them into buffers with room to spare; when it is used
up, larger buffers take their place. Until then every step reads and writes the same memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.runtime.ort_session import Layers, OrtSession
from lucid_deploy.runtime.session import Array, Cache

_GRAIN = 256  # rows; buffers are a multiple of it …
_SPARE = 8  # … and at least an eighth longer than what they hold, so that moving stays cheap per token


@dataclass
class _Buffers:
    """Everything that is bound: numpy arrays that onnxruntime reads from and writes into."""

    layers: Layers  # numpy arrays (K, Y), each (B, KV, M, D)
    mask: Array  # int64 (B, M)
    input_ids: Array  # int64 (B, 1)
    positions: Array  # int64 (B, 1)
    length: Array  # int64 (B,)
    binding: Any


class StaticOrtSession(OrtSession):
    """As :class:`OrtSession`, for an artifact exported with ``--cache static``.

    A cache's layers are numpy arrays: of exactly its length after prefill, longer while decoding.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None, allow_extrapolation: bool = False) -> None:
        super().__init__(artifact, threads, allow_extrapolation)
        self._bound: _Buffers | None = None

    def layer_arrays(self, cache: Cache[Any]) -> list[tuple[Array, Array]]:
        """See :meth:`Session.layer_arrays`."""
        kind = np.float32
        return [(k[:, :, : cache.length].astype(kind), y[:, :, : cache.length].astype(kind)) for k, y in cache.layers]

    def fork(self, cache: Cache[Any]) -> Cache[Any]:
        """See :meth:`Session.fork`; buffers are written in place, so they are copied."""
        return Cache(cache.mask, [(k.copy(), y.copy()) for k, y in cache.layers])

    def _layers_from_arrays(self, layers: list[tuple[Array, Array]]) -> Layers:
        kind = np.float16 if self.dtype == "float16" else np.float32
        return [(np.ascontiguousarray(k, dtype=kind), np.ascontiguousarray(y, dtype=kind)) for k, y in layers]

    def _run_prefill(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        past = mask.shape[1] - input_ids.shape[1]
        make = self._ort.OrtValue.ortvalue_from_numpy
        values = [tuple(make(np.ascontiguousarray(x[:, :, :past])) for x in pair) for pair in layers]
        logits, present = super()._run_prefill(input_ids, mask, positions, values)
        return logits, [(k.numpy(), y.numpy()) for k, y in present]

    def _run_decode(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        past = mask.shape[1] - 1
        bound = self._bound
        if bound is None or bound.layers is not layers or past >= bound.mask.shape[1]:
            bound = self._bound = self._bind(layers, past, mask)
        bound.input_ids[:] = input_ids
        bound.positions[:] = positions
        bound.length[:] = past
        # The graph masks by cache_length too and counts the new row as a token; its mask holds from the next step on.
        self._decode.run_with_iobinding(bound.binding)
        bound.mask[:, past] = mask[:, past]
        return bound.binding.get_outputs()[0].numpy().copy(), bound.layers

    def _bind(self, layers: Layers, past: int, mask: Array) -> _Buffers:
        """Move a cache's rows into buffers with room, and bind them as inputs and outputs at once.

        The list is changed layer by layer, so that the old rows of one layer at most are in memory beside the new.
        """
        batch, heads, _, width = layers[0][0].shape
        room = -(-(past + max(past // _SPARE, 1)) // _GRAIN) * _GRAIN
        for index in range(len(layers)):
            moved = []
            for rows in layers[index]:
                buffer = np.zeros((batch, heads, room, width), dtype=rows.dtype)
                buffer[:, :, :past] = rows[:, :, :past]
                moved.append(buffer)
            layers[index] = (moved[0], moved[1])
        bound = _Buffers(
            layers,
            np.zeros((batch, room), np.int64),
            np.zeros((batch, 1), np.int64),
            np.zeros((batch, 1), np.int64),
            np.zeros((batch,), np.int64),
            self._decode.io_binding(),
        )
        bound.mask[:, :past] = mask[:, :past]
        make = self._ort.OrtValue.ortvalue_from_numpy
        inputs = {
            "input_ids": bound.input_ids,
            "attention_mask": bound.mask,
            "position_ids": bound.positions,
            "cache_length": bound.length,
        }
        for name, array in inputs.items():
            bound.binding.bind_ortvalue_input(name, make(array))
        bound.binding.bind_output("logits")
        for index, pair in enumerate(layers):
            for kind, buffer in zip(("key", "value"), pair, strict=True):
                value = make(buffer)
                bound.binding.bind_ortvalue_input(f"past_key_values.{index}.{kind}", value)
                bound.binding.bind_ortvalue_output(f"present.{index}.{kind}", value)
        return bound
