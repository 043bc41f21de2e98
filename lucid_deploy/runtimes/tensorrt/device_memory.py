"""Device memory that is taken once and used again, and the cache tensors that live in it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from lucid_deploy.runtimes.tensorrt.device import Device

_LEAST = 256  # bytes: an empty tensor has an address too


class DeviceBlock:
    """Bytes on the device; they go back to their pool when nobody holds the block any more."""

    def __init__(self, pool: MemoryPool, address: int, size: int) -> None:
        self.address, self.size = address, size
        # Not at the end of the process: the driver may be gone by then, and takes everything with it.
        weakref.finalize(self, pool.give, address, size).atexit = False


class MemoryPool:
    """Hands out blocks. Sizes repeat from step to step, so after the first steps nothing is allocated any more.

    A block can be handed out again while work that reads it is still queued: one stream keeps everything in order.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free: dict[int, list[int]] = {}
        weakref.finalize(self, _free_all, device, self._free).atexit = False

    def take(self, size: int) -> DeviceBlock:
        """Return a block of at least ``size`` bytes; its content is arbitrary.

        Raises:
            LucidError: The device's memory is full.
        """
        size = max(size, _LEAST)
        free = self._free.get(size)
        return DeviceBlock(self, free.pop() if free else self._device.allocate(size), size)

    def give(self, address: int, size: int) -> None:
        """Take an address back."""
        self._free.setdefault(size, []).append(address)


def _free_all(device: Device, free: dict[int, list[int]]) -> None:
    """Give a pool's memory back to the device. Blocks hold their pool, so all of it is unused by then."""
    device.activate()
    for address in (address for addresses in free.values() for address in addresses):
        device.free(address)


@dataclass(frozen=True)
class DeviceTensor:
    """One layer's K or Y on the device, ``(batch, heads, tokens, width)``.

    Attributes:
        block: Where it lies.
        pitch: Tokens from one head's first row to the next head's: as many as it holds, or the length of a buffer.
    """

    block: DeviceBlock
    pitch: int

    @property
    def address(self) -> int:
        """Of the first row."""
        return self.block.address
