"""Cached tensors on the device: create them, copy them to and from the host, and change their pitch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.cache.layout import CacheLayout, CacheTensor
from lucid_deploy.runtimes.cache_operations import Array
from lucid_deploy.runtimes.tensorrt.device import Device, bytes_of

_LEAST = 256  # bytes of a block, so that even an empty tensor has an address


class DeviceBlock:
    """Bytes on the device, which return to their pool when the block is garbage-collected."""

    def __init__(self, pool: MemoryPool, address: int, size: int) -> None:
        self.address, self.size = address, size
        # Not at the end of the process: by then the driver may be gone, and has freed everything.
        weakref.finalize(self, pool.give, address, size).atexit = False


class MemoryPool:
    """A pool of device memory. Block sizes repeat from step to step, so only the first steps allocate.

    A block may be reused while queued work still reads it: everything runs in order on one stream.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free: dict[int, list[int]] = {}
        weakref.finalize(self, _free_all, device, self._free).atexit = False

    def take(self, size: int) -> DeviceBlock:
        """Return a block of at least ``size`` bytes; its content is arbitrary."""
        size = max(size, _LEAST)
        free = self._free.get(size)
        return DeviceBlock(self, free.pop() if free else self._device.allocate(size), size)

    def give(self, address: int, size: int) -> None:
        """Return a block's memory to the pool."""
        self._free.setdefault(size, []).append(address)


def _free_all(device: Device, free: dict[int, list[int]]) -> None:
    """Free the memory of a garbage-collected pool. Blocks refer to their pool, so none is still in use."""
    device.activate()
    for address in (address for addresses in free.values() for address in addresses):
        device.free(address)


@dataclass(frozen=True)
class DeviceTensor:
    """A layer's cached tensor on the device: rows such as K or Y, ``(batch, heads, tokens, width)``, or a state."""

    block: DeviceBlock
    pitch: int  # rows from one head's first row to the next head's: the tokens held, or a buffer's length

    @property
    def address(self) -> int:
        """The address of the first row."""
        return self.block.address


CachedLayers = list[tuple[DeviceTensor, ...]]  # per layer the tensors of its layout, such as K and Y


class DeviceCaches:
    """Creates, copies and names the tensors of one model's caches, which hold at most ``most`` tokens."""

    def __init__(self, layout: CacheLayout, device: Device, pool: MemoryPool, most: int) -> None:
        self._layout, self._device, self._pool, self._most = layout, device, pool, most

    def each(self, do: Callable[[CacheTensor, Any], Any], layers: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Call ``do`` with every cached tensor's description and content; return the results, layer by layer."""
        return [
            tuple(do(layout, tensor) for layout, tensor in zip(described, tensors, strict=True))
            for described, tensors in zip(self._layout, layers, strict=True)
        ]

    def named(self, prefix: str, layers: CachedLayers) -> list[tuple[str, CacheTensor, DeviceTensor]]:
        """Return for each tensor its name in the graphs, beginning with ``prefix``, its description, and the tensor."""
        return [
            (f"{prefix}.{index}.{layout.name}", layout, tensor)
            for index, (described, tensors) in enumerate(zip(self._layout, layers, strict=True))
            for layout, tensor in zip(described, tensors, strict=True)
        ]

    def new(self, layout: CacheTensor, batch: int, tokens: int) -> DeviceTensor:
        """Return a new tensor. Unless it is empty, its block has room for the longest context, for later reuse."""
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
        """Return the tensor without room after each head's tokens: itself if there is none, else a copy."""
        if tensor.pitch == tokens or not layout.has_tokens:
            return tensor
        return self.moved(layout, tensor, batch, tokens, tokens)

    def moved(self, layout: CacheTensor, tensor: DeviceTensor, batch: int, tokens: int, pitch: int) -> DeviceTensor:
        """Return a copy with another pitch; the room after each head's tokens is filled with zeros."""
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
