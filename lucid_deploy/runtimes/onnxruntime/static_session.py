"""onnxruntime with a static cache: buffers bound once, each new row written in place.

Prefill works on growing tensors. The first decode step moves them into buffers with room to spare; when it is used
up, larger buffers take their place. Until then every step reads and writes the same memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.cache.storage import decode_layer, encode_layer
from lucid_deploy.runtimes.in_place import InPlaceDecoding
from lucid_deploy.runtimes.onnxruntime.session import Layers, OrtSession
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Array, Cache

_GRAIN = 256  # rows; buffers are a multiple of it …
_SPARE = 8  # … and at least an eighth longer than what they hold, so that moving stays cheap per token


@dataclass
class _Buffers:
    """Everything that is bound: numpy arrays that onnxruntime reads from and writes into."""

    layers: Layers  # numpy arrays (K, Y[, scale of K, scale of Y]), each (B, KV, M, ·)
    mask: Array  # int64 (B, M)
    input_ids: Array  # int64 (B, 1)
    positions: Array  # int64 (B, 1)
    length: Array  # int64 (B,)
    binding: Any


class StaticOrtSession(OrtSession):
    """As :class:`OrtSession`, for an artifact exported with ``--cache static``.

    A cache's layers are numpy arrays: of exactly its length after prefill, longer while decoding.
    """

    def __init__(self, artifact: Artifact, options: RuntimeOptions | None = None) -> None:
        super().__init__(artifact, options)
        self._bound: _Buffers | None = None

    @property
    def in_place(self) -> InPlaceDecoding:
        """See :attr:`Session.in_place`."""
        return self

    def layer_arrays(self, cache: Cache[Any]) -> list[tuple[Array, Array]]:
        """See :meth:`Session.layer_arrays`."""
        # Copies, since buffers are written in place.
        return [decode_layer(tuple(x[:, :, : cache.length].copy() for x in layer)) for layer in cache.layers]

    def fork(self, cache: Cache[Any]) -> Cache[Any]:
        """See :meth:`Session.fork`; buffers are written in place, so they are copied."""
        return Cache(cache.mask, [tuple(x.copy() for x in layer) for layer in cache.layers])

    def _first_tokens(self, cache: Cache[Any], length: int) -> Layers:
        return cache.layers  # rows beyond the cache's length are not read

    def _layers_from_arrays(self, layers: list[tuple[Array, Array]]) -> Layers:
        return [encode_layer(k, y, self.cache_dtype) for k, y in layers]

    def _run_prefill_all(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        past = mask.shape[1] - input_ids.shape[1]
        make = self._ort.OrtValue.ortvalue_from_numpy
        values = [tuple(make(np.ascontiguousarray(x[:, :, :past])) for x in layer) for layer in layers]
        logits, present = super()._run_prefill_all(input_ids, mask, positions, values)
        return logits, [tuple(x.numpy() for x in layer) for layer in present]

    def _run_decode(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        past = mask.shape[1] - 1
        bound = self._bound
        if bound is None or bound.layers is not layers or past >= bound.mask.shape[1]:
            bound = self._bound = self._bind(layers, past, mask)
        bound.input_ids[:] = input_ids
        bound.positions[:] = positions
        bound.length[:] = past
        # The graph masks by cache_length too and counts the new row as a token; its mask holds from the next step on.
        logits = self.run_bound(bound.binding)
        bound.mask[:, past] = mask[:, past]
        return logits, bound.layers

    def _bind(self, layers: Layers, past: int, mask: Array) -> _Buffers:
        """Move a cache's rows into buffers with room, and bind them as inputs and outputs at once.

        The list is changed layer by layer, so that the old rows of one layer at most are in memory beside the new.
        """
        batch = layers[0][0].shape[0]
        room = -(-(past + max(past // _SPARE, 1)) // _GRAIN) * _GRAIN
        for index in range(len(layers)):
            moved = []
            for rows in layers[index]:
                buffer = np.zeros((batch, rows.shape[1], room, rows.shape[3]), dtype=rows.dtype)
                buffer[:, :, :past] = rows[:, :, :past]
                moved.append(buffer)
            layers[index] = tuple(moved)
        whole, column = np.zeros((batch, room), np.int64), np.zeros((batch, 1), np.int64)
        whole[:, :past] = mask[:, :past]
        length = np.zeros((batch,), np.int64)
        positions = column.copy()
        binding = self.bind_decode(layers, whole, column, positions, length)
        return _Buffers(layers, whole, column, positions, length, binding)

    def bind_decode(
        self, layers: Sequence[tuple[Array, ...]], mask: Array, input_ids: Array, positions: Array, length: Array
    ) -> Any:
        """See :meth:`InPlaceDecoding.bind_decode`: inputs of the decode graph, and the buffers its outputs too."""
        binding, make = self._decode.io_binding(), self._ort.OrtValue.ortvalue_from_numpy
        inputs = {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": positions,
            "cache_length": length,
        }
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, make(array))
        binding.bind_output("logits")
        for index, layer in enumerate(layers):
            for suffix, buffer in zip(self._suffixes, layer, strict=True):
                value = make(buffer)
                binding.bind_ortvalue_input(f"past_key_values.{index}.{suffix}", value)
                binding.bind_ortvalue_output(f"present.{index}.{suffix}", value)
        return binding

    def run_bound(self, binding: Any) -> Array:
        """See :meth:`InPlaceDecoding.run_bound`."""
        self._decode.run_with_iobinding(binding)
        logits: Array = binding.get_outputs()[0].numpy().copy()
        return logits
