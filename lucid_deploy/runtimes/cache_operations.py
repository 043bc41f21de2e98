"""Caches, and operations on them that do not run the model: create, fork, truncate, read and fill.

Shapes: B batch, T tokens so far, KV key/value heads, D head width.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from lucid_deploy.cache.layout import Array, CacheLayout, CacheTensor, check_truncation, first_tokens
from lucid_deploy.cache.storage import check_arrays, decode_layer, decoded_layout, encode_layer
from lucid_deploy.errors import LucidError
from lucid_deploy.model.description import LayerDescription

Tensor = TypeVar("Tensor")


@dataclass
class Cache(Generic[Tensor]):
    """The layers' cached tensors, for the tokens that a batch of rows has seen so far."""

    mask: Array  # bool (B, T), False at padding
    # Per layer the tensors of its layout in stored form, such as K and Y, (B, KV, T, D); static buffers are longer.
    layers: list[tuple[Tensor, ...]]
    # Int64 (B,): the slot of the adapter that each row was computed with, 0 for none; keys and values depend on it.
    adapter_ids: Array = field(default_factory=lambda: np.zeros((0,), np.int64))

    def __post_init__(self) -> None:
        if len(self.adapter_ids) != self.batch:
            self.adapter_ids = np.zeros((self.batch,), np.int64)

    @property
    def batch(self) -> int:
        """The number of rows."""
        return int(self.mask.shape[0])

    @property
    def length(self) -> int:
        """The number of columns: tokens of each row so far, padding included."""
        return int(self.mask.shape[1])


class CacheOperations(ABC, Generic[Tensor]):
    """Operations on caches. Without numpy tensors, override ``_to_array`` and ``_from_array``, or their callers."""

    layers: tuple[LayerDescription, ...]
    layout: CacheLayout  # the tensors that these layers cache
    default_adapter: int = 0  # the adapter id of rows whose adapter is not given

    def _to_array(self, tensor: CacheTensor, value: Tensor) -> Array:
        """Return a cached tensor as an array in its stored form; both may share memory."""
        return value  # type: ignore[return-value]

    def _from_array(self, tensor: CacheTensor, array: Array) -> Tensor:
        """Return an array in the stored form as a cached tensor; both may share memory."""
        return array  # type: ignore[return-value]

    def empty_cache(self, batch: int = 1, adapter_ids: Array | None = None) -> Cache[Tensor]:
        """Return a cache before the first token; ``adapter_ids``: int64 ``(batch,)``, None for the default adapter."""
        if batch < 0:
            raise LucidError(f"A batch cannot have {batch} rows.")
        arrays = empty_arrays(self.layers, batch)
        return self.cache_from_arrays(arrays, np.ones((batch, 0), dtype=bool), adapter_ids)

    def cache_from_arrays(
        self, layers: list[tuple[Array, ...]], mask: Array, adapter_ids: Array | None = None
    ) -> Cache[Tensor]:
        """Return a cache with the given content: for each layer what :meth:`layer_arrays` returns, and the mask.

        Raw keys K and preconditioned values Y are float32 or wider, ``(B, KV, T, D)``; the mask is bool ``(B, T)``.
        """
        check_arrays(layers, self.layout, *mask.shape)
        ids = np.full(len(mask), self.default_adapter, np.int64) if adapter_ids is None else adapter_ids
        return Cache(mask, self._layers_from_arrays(layers), ids)

    def layer_arrays(self, cache: Cache[Tensor]) -> list[tuple[Array, ...]]:
        """Return each layer's cached tensors as numpy arrays, scales applied, in float32 or wider."""
        return [
            decode_layer([self._to_array(t, x) for t, x in zip(layout, layer, strict=True)], layout)
            for layout, layer in zip(self.layout, cache.layers, strict=True)
        ]

    def fork(self, cache: Cache[Tensor]) -> Cache[Tensor]:
        """Return an independent copy of a cache. Growing tensors are shared: they never change once they are made."""
        return Cache(cache.mask, list(cache.layers), cache.adapter_ids)

    def truncate(self, cache: Cache[Tensor], length: int) -> None:
        """Keep the first ``length`` columns, padding included, as if the later tokens had never been run.

        This is exact: rows of a token depend on no later token and never change once written. Layers that cannot be
        cut back (a state, or a ring that has dropped rows) are refused with a LucidError.
        """
        if not 0 <= length <= cache.length:
            raise LucidError(f"A cache of {cache.length} tokens cannot be truncated to {length}.")
        check_truncation(self.layout, length, cache.length)
        if length < cache.length:
            cache.layers = self._first_tokens(cache, length)
            cache.mask = cache.mask[:, :length]

    @property
    def cuts_freely(self) -> bool:
        """Whether :meth:`truncate` copies nothing, or at most rings."""
        return False

    def _first_tokens(self, cache: Cache[Tensor], length: int) -> list[tuple[Tensor, ...]]:
        """Cut all tensors back in their stored form, because decoding and encoding them would round a second time."""

        def cut(tensor: CacheTensor, value: Tensor) -> Tensor:
            # Copied, because a contiguous view (one batch row and head) would keep the whole tensor in memory.
            return self._from_array(
                tensor, first_tokens(tensor, self._to_array(tensor, value), length, cache.mask).copy()
            )

        return [tuple(map(cut, layout, layer)) for layout, layer in zip(self.layout, cache.layers, strict=True)]

    def _layers_from_arrays(self, layers: list[tuple[Array, ...]]) -> list[tuple[Tensor, ...]]:
        """Convert arrays, as :meth:`layer_arrays` returns them, to a cache's layers."""
        return [
            tuple(map(self._from_array, layout, encode_layer(arrays, layout)))
            for layout, arrays in zip(self.layout, layers, strict=True)
        ]


def empty_arrays(layers: tuple[LayerDescription, ...], batch: int) -> list[tuple[Array, ...]]:
    """Return, in float32, what :meth:`CacheOperations.layer_arrays` returns for an empty cache."""
    return [
        tuple(np.zeros(tensor.batch_shape(batch, 0), dtype=np.float32) for tensor in decoded_layout(layer.cache))
        for layer in layers
    ]
