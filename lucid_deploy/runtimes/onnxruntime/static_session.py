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
from lucid_deploy.cache.layout import CacheTensor, first_tokens, held, new_buffer
from lucid_deploy.cache.storage import decode_layer, encode_layer
from lucid_deploy.runtimes.in_place import InPlaceDecoding
from lucid_deploy.runtimes.onnxruntime.session import Layers, OrtSession
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Array, Cache

_GRAIN = 256  # rows; buffers are a multiple of it …
_SPARE = 8  # … and at least an eighth longer than what they hold, so that moving stays cheap per token


@dataclass(frozen=True)
class BoundStep:
    """A decode step on memory that stays where it is.

    Attributes:
        binding: onnxruntime's binding of inputs and outputs.
        replaced: Input and output of every tensor that is not written in place.
    """

    binding: Any
    replaced: list[tuple[Array, Array]]


@dataclass
class _BoundBuffers:
    """Everything that is bound: numpy arrays that onnxruntime reads from and writes into."""

    layers: Layers  # numpy arrays (K, Y[, scale of K, scale of Y]), each (B, KV, M, ·)
    mask: Array  # int64 (B, M)
    input_ids: Array  # int64 (B, 1)
    positions: Array  # int64 (B, 1)
    length: Array  # int64 (B,)
    binding: BoundStep


class StaticOrtSession(OrtSession):
    """As :class:`OrtSession`, for an artifact exported with ``--cache static``.

    A cache's layers are numpy arrays: of exactly its length after prefill, longer while decoding.
    """

    def __init__(self, artifact: Artifact, options: RuntimeOptions | None = None) -> None:
        super().__init__(artifact, options)
        self._bound: _BoundBuffers | None = None

    @property
    def in_place(self) -> InPlaceDecoding:
        """See :attr:`Session.in_place`."""
        return self

    def layer_arrays(self, cache: Cache[Any]) -> list[tuple[Array, ...]]:
        """See :meth:`Session.layer_arrays`."""
        # Copies, since buffers are written in place.
        return [
            decode_layer([held(t, x, cache.length).copy() for t, x in zip(layout, layer, strict=True)], layout)
            for layout, layer in zip(self.layout, cache.layers, strict=True)
        ]

    def fork(self, cache: Cache[Any]) -> Cache[Any]:
        """See :meth:`Session.fork`; buffers are written in place, so they are copied."""
        return Cache(cache.mask, [tuple(x.copy() for x in layer) for layer in cache.layers])

    def _first_tokens(self, cache: Cache[Any], length: int) -> Layers:
        # Rows beyond the cache's length are not read, so they stay. A ring's newest rows are read, so they go.
        if all(tensor.sort == "rows" for layer in self.layout for tensor in layer):
            return cache.layers  # still bound: nothing is copied
        return [
            tuple(first_tokens(t, x, length, cache.mask) if t.sort == "ring" else x for t, x in zip(*pair, strict=True))
            for pair in zip(self.layout, cache.layers, strict=True)
        ]

    def _layers_from_arrays(self, layers: list[tuple[Array, ...]]) -> Layers:
        return [encode_layer(arrays, layout) for layout, arrays in zip(self.layout, layers, strict=True)]

    def _run_prefill_all(self, input_ids: Array, mask: Array, positions: Array, layers: Layers) -> tuple[Array, Layers]:
        past = mask.shape[1] - input_ids.shape[1]
        make = self._ort.OrtValue.ortvalue_from_numpy
        values = [
            tuple(make(np.ascontiguousarray(held(t, x, past))) for t, x in zip(layout, layer, strict=True))
            for layout, layer in zip(self.layout, layers, strict=True)
        ]
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
        waiting = np.flatnonzero(~mask[:, past].astype(bool))  # no token of these rows may enter a ring or a state
        before = [(buffer, buffer[waiting]) for buffer, _ in bound.binding.replaced] if len(waiting) else []
        logits = self.run_bound(bound.binding)
        for buffer, kept in before:
            buffer[waiting] = kept
        bound.mask[:, past] = mask[:, past]
        return logits, bound.layers

    def _bind(self, layers: Layers, past: int, mask: Array) -> _BoundBuffers:
        """Move a cache's rows into buffers with room, and bind them as inputs and outputs at once.

        The list is changed layer by layer, so that the old rows of one layer at most are in memory beside the new.
        """
        batch = mask.shape[0]
        room = -(-(past + max(past // _SPARE, 1)) // _GRAIN) * _GRAIN
        for index, layout in enumerate(self.layout):
            layers[index] = tuple(_moved(t, x, past, room) for t, x in zip(layout, layers[index], strict=True))
        whole, column = np.zeros((batch, room), np.int64), np.zeros((batch, 1), np.int64)
        whole[:, :past] = mask[:, :past]
        length = np.zeros((batch,), np.int64)
        positions = column.copy()
        binding = self.bind_decode(layers, whole, column, positions, length)
        return _BoundBuffers(layers, whole, column, positions, length, binding)

    def bind_decode(
        self, layers: Sequence[tuple[Array, ...]], mask: Array, input_ids: Array, positions: Array, length: Array
    ) -> BoundStep:
        """See :meth:`InPlaceDecoding.bind_decode`: inputs of the decode graph, and the buffers of rows its outputs too.

        What is not written in place, a ring or a state, has an output of its own that a step copies back.
        """
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
        replaced = []
        for index, (layout, layer) in enumerate(zip(self.layout, layers, strict=True)):
            for tensor, buffer in zip(layout, layer, strict=True):
                output = buffer if tensor.sort == "rows" else np.empty_like(buffer)
                binding.bind_ortvalue_input(f"past_key_values.{index}.{tensor.name}", make(buffer))
                binding.bind_ortvalue_output(f"present.{index}.{tensor.name}", make(output))
                if output is not buffer:
                    replaced.append((buffer, output))
        return BoundStep(binding, replaced)

    def run_bound(self, binding: BoundStep) -> Array:
        """See :meth:`InPlaceDecoding.run_bound`."""
        self._decode.run_with_iobinding(binding.binding)
        for buffer, new in binding.replaced:
            buffer[...] = new
        logits: Array = binding.binding.get_outputs()[0].numpy().copy()
        return logits


def _moved(tensor: CacheTensor, rows: Array, past: int, room: int) -> Array:
    """Return a buffer with room for so many rows that holds what another one does."""
    buffer = new_buffer(tensor, rows.shape[0], room, rows.dtype)
    held(tensor, buffer, past)[:] = held(tensor, rows, past)
    return buffer
