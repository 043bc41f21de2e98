"""A cache's tensors on the device: made, moved to another pitch, sent there and fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lucid_deploy.cache.layout import CacheLayout, CacheTensor
from lucid_deploy.runtimes.cache_operations import Array
from lucid_deploy.runtimes.tensorrt.device import Device, bytes_of
from lucid_deploy.runtimes.tensorrt.device_memory import DeviceTensor, MemoryPool

Layers = list[tuple[DeviceTensor, ...]]  # per layer the tensors of its layout, such as K and Y


class DeviceCaches:
    """Makes caches of one model.

    Args:
        layout: What its layers cache.
        device: The GPU.
        pool: Where memory comes from.
        most: Tokens that a cache has at most.
    """

    def __init__(self, layout: CacheLayout, device: Device, pool: MemoryPool, most: int) -> None:
        self._layout, self._device, self._pool, self._most = layout, device, pool, most

    def each(self, do: Callable[[CacheTensor, Any], Any], layers: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Do something to every tensor of a cache, given its description; return the results, layer by layer."""
        return [
            tuple(do(layout, tensor) for layout, tensor in zip(described, tensors, strict=True))
            for described, tensors in zip(self._layout, layers, strict=True)
        ]

    def named(self, prefix: str, layers: Layers) -> list[tuple[str, CacheTensor, DeviceTensor]]:
        """Return the graphs' name of every tensor, which begins with ``past_key_values`` or ``present``, and both."""
        return [
            (f"{prefix}.{index}.{layout.name}", layout, tensor)
            for index, (described, tensors) in enumerate(zip(self._layout, layers, strict=True))
            for layout, tensor in zip(described, tensors, strict=True)
        ]

    def new(self, layout: CacheTensor, batch: int, tokens: int) -> DeviceTensor:
        """Return a tensor for some tokens; its block is large enough for the whole context, so all are alike."""
        most = self._most if tokens or not layout.has_tokens else 0
        return DeviceTensor(self._pool.take(batch * layout.size(most)), tokens)

    def send(self, layout: CacheTensor, array: Array, batch: int, tokens: int) -> DeviceTensor:
        """Return a tensor with the content of an array in its stored form."""
        tensor = self.new(layout, batch, tokens)
        self._device.upload(tensor.address, np.ascontiguousarray(array, dtype=bytes_of(layout.dtype)))
        return tensor

    def fetch(self, layout: CacheTensor, tensor: DeviceTensor, batch: int, tokens: int) -> Array:
        """Return a tensor's content in its stored form; bfloat16, unknown to numpy, as float32."""
        array = np.empty(layout.batch_shape(batch, tokens), bytes_of(layout.dtype))
        self._device.download(array, self.packed(layout, tensor, batch, tokens).address)
        return array.astype(np.float32) if layout.dtype == "bfloat16" else array

    def packed(self, layout: CacheTensor, tensor: DeviceTensor, batch: int, tokens: int) -> DeviceTensor:
        """Return the tensor with its tokens right behind each other, itself if they are; a state is."""
        if tensor.pitch == tokens or not layout.has_tokens:
            return tensor
        return self.moved(layout, tensor, batch, tokens, tokens)

    def moved(self, layout: CacheTensor, tensor: DeviceTensor, batch: int, tokens: int, pitch: int) -> DeviceTensor:
        """Return a copy with another pitch; what lies between its tokens and the pitch is zero."""
        moved = self.new(layout, batch, pitch)
        if not layout.has_tokens:
            size = batch * layout.size(pitch)
            self._device.copy_rows(moved.address, size, tensor.address, size, size, 1)
            return moved
        heads, width = layout.shape
        rows, row = batch * heads, width * bytes_of(layout.dtype).itemsize
        if pitch > tokens:
            self._device.fill_zero(moved.address, rows * pitch * row)
        self._device.copy_rows(moved.address, pitch * row, tensor.address, tensor.pitch * row, tokens * row, rows)
        return moved
