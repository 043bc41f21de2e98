"""The emulator's global and shared memory, which check every access.

As with compute-sanitizer on a GPU, an access must stay inside the buffers, be aligned, and not race.
Two threads race in a program's shared memory if no barrier of the program (or of their warp, if they share one) is
between their accesses. Programs race in global memory if one reads or overwrites what another has written, without
acquiring a number that the other released after writing.
"""

from __future__ import annotations

import numpy as np

LANES = 32
_BUFFER_BITS = 36  # low bits of an address, the offset in a buffer; the bits above are the buffer's number
_FIRST = 0x700 << _BUFFER_BITS
_UNITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_OUTSIDE = -1  # as a byte's writer: written before the launch


class Fault(Exception):
    """A program did something that PTX does not allow, such as a race."""


class GlobalMemory:
    """Buffers that a launch may use; no two are adjacent."""

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []
        self._sizes: list[int] = []
        self._writers: list[np.ndarray] = []  # the number of the program that wrote each byte

    def add(self, buffer: np.ndarray) -> int:
        """Add a copy of a buffer; return the copy's address, a multiple of 256."""
        raw = np.frombuffer(buffer.tobytes(), np.uint8)
        padded = np.zeros(-(-raw.size // 16) * 16 + 16, np.uint8)
        padded[: raw.size] = raw
        self._buffers.append(padded)
        self._sizes.append(raw.size)
        self._writers.append(np.empty(0, np.int32))
        self.forget_writers()
        return _FIRST + (len(self._buffers) - 1 << _BUFFER_BITS)

    def contents(self, address: int) -> np.ndarray:
        """Return the bytes of a buffer."""
        number = self._number(address)
        return self._buffers[number][: self._sizes[number]].copy()

    def fill(self, address: int, value: int, count: int) -> None:
        """Set the first bytes of a buffer."""
        number = self._number(address)
        if count > self._sizes[number]:
            raise Fault(f"{count} bytes are set in a buffer of {self._sizes[number]} bytes")
        self._buffers[number][:count] = value

    def forget_writers(self) -> None:
        """Begin a launch: all programs may read what was written before it."""
        for i, buffer in enumerate(self._buffers):
            self._writers[i] = np.full(buffer.size, _OUTSIDE, np.int32)

    def read(self, addresses: np.ndarray, size: int, count: int, program: int, seen: np.ndarray) -> np.ndarray:
        """Return ``(len(addresses), count)`` numbers of ``size`` bytes, as unsigned integers.

        Args:
            addresses: Address of each thread's first number.
            size: Bytes of a number, a power of 2.
            count: Numbers per thread.
            program: Number of the program that reads.
            seen: For each program, whether the reader has acquired what that program released after its writes.
        """
        found = np.empty((len(addresses), count), _UNITS[size])
        for number, threads in self._by_buffer(addresses):
            bytes_ = self._bytes(number, addresses[threads], size * count, "read")
            self._check_writers(number, bytes_, program, seen, "reads")
            found[threads] = self._buffers[number][bytes_].view(_UNITS[size])
        return found

    def write(self, addresses: np.ndarray, values: np.ndarray, program: int, seen: np.ndarray) -> None:
        """Write ``(len(addresses), count)`` numbers; other arguments are as in :meth:`read`."""
        size = values.shape[1] * values.itemsize
        for number, threads in self._by_buffer(addresses):
            bytes_ = self._bytes(number, addresses[threads], size, "written")
            self._check_writers(number, bytes_, program, seen, "writes over")
            self._buffers[number][bytes_] = np.ascontiguousarray(values[threads]).view(np.uint8)
            self._writers[number][bytes_] = program

    def add_atomically(self, address: int, value: int) -> int:
        """Add to a 32-bit number; return the old number."""
        number = self._number(address)
        place = self._bytes(number, np.array([address], np.uint64), 4, "added to")[0]
        old = int(self._buffers[number][place].view(np.uint32)[0])
        self._buffers[number][place] = np.array([old + value & 0xFFFFFFFF], np.uint32).view(np.uint8)
        return old

    def load_atomically(self, address: int) -> int:
        """Return a 32-bit number."""
        return self.add_atomically(address, 0)

    def _number(self, address: int) -> int:
        number = (address >> _BUFFER_BITS) - 0x700
        if not 0 <= number < len(self._buffers):
            raise Fault(f"the address {address:#x} is in no buffer")
        return number

    def _by_buffer(self, addresses: np.ndarray) -> list[tuple[int, np.ndarray]]:
        numbers = (addresses >> np.uint64(_BUFFER_BITS)).astype(np.int64) - 0x700
        found = np.unique(numbers)
        if found.size and (found[0] < 0 or found[-1] >= len(self._buffers)):
            raise Fault(
                f"{int(addresses[np.argmax((numbers < 0) | (numbers >= len(self._buffers)))]):#x} is in no buffer"
            )
        return [(int(number), numbers == number) for number in found]

    def _bytes(self, number: int, addresses: np.ndarray, size: int, what: str) -> np.ndarray:
        first = (addresses & np.uint64((1 << _BUFFER_BITS) - 1)).astype(np.int64)
        if (first % size).any():
            raise Fault(f"{size} bytes are {what} at {int(first[np.argmax(first % size != 0)])}, which is not aligned")
        if first.size and first.max() + size > self._sizes[number]:
            raise Fault(f"{size} bytes are {what} at {int(first.max())} of a buffer of {self._sizes[number]} bytes")
        return first[:, None] + np.arange(size)

    def _check_writers(self, number: int, bytes_: np.ndarray, program: int, seen: np.ndarray, what: str) -> None:
        writers = self._writers[number][bytes_]
        others = (writers != _OUTSIDE) & (writers != program)
        if others.any() and not seen[writers[others]].all():
            other = int(writers[others][~seen[writers[others]]][0])
            raise Fault(f"program {program} {what} what program {other} wrote, without release and acquire")


class SharedMemory:
    """A program's shared memory, at first filled with NaN.

    For every byte, the threads that last wrote and read it are stored, with the numbers of barriers of the program and
    of the thread's warp that had been passed then.
    """

    def __init__(self, size: int, threads: int) -> None:
        self.size = size
        self._bytes = np.full(-(-size // 16) * 16 + 16, 0xFF, np.uint8)
        shape = self._bytes.size
        self._writer, self._reader = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
        self._written, self._written_in_warp = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
        self._was_read, self._was_read_in_warp = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
        self._other_threads, self._other_warps = np.zeros(shape, bool), np.zeros(shape, bool)
        self._awaited = np.zeros(shape, bool)  # an asynchronous copy that has not ended will write the byte
        self._fenced = np.zeros(shape, np.int32)  # how many fences had been passed when the byte was written
        self._in_use = np.zeros(shape, np.int32)  # how many MMAs that have not been waited for read the byte
        self.fences = 0
        self.barriers = 0
        self.warp_barriers = np.zeros(-(-threads // LANES), np.int32)

    def read(self, offsets: np.ndarray, size: int, count: int, threads: np.ndarray) -> np.ndarray:
        """Return ``(len(offsets), count)`` numbers of ``size`` bytes, as unsigned integers, for the threads given."""
        places = self._accessed(offsets, size * count, threads, "read")
        who = np.broadcast_to(threads[:, None], places.shape)
        if self._awaited[places].any():
            raise Fault("shared memory is read that an asynchronous copy has not yet filled")
        self._check(who, self._writer[places], self._written[places], self._written_in_warp[places], "reads", "wrote")
        self._note_reading(places, who)
        return np.ascontiguousarray(self._bytes[places]).view(_UNITS[size])

    def write(self, offsets: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        """Write ``(len(offsets), count)`` numbers."""
        places = self._accessed(offsets, values.shape[1] * values.itemsize, threads, "written")
        bytes_ = np.ascontiguousarray(values).view(np.uint8)
        self._check_writing(places, bytes_, threads)
        self._put(places, bytes_, threads)

    def begin_copy(self, offsets: np.ndarray, bytes_: np.ndarray, threads: np.ndarray) -> np.ndarray:
        """Mark bytes that an asynchronous copy writes until :meth:`end_copy`; return their offsets."""
        places = self._accessed(offsets, bytes_.shape[1], threads, "written")
        if self._awaited[places].any():
            raise Fault("an asynchronous copy begins where another has not ended")
        self._check_writing(places, bytes_, threads)
        self._awaited[places] = True
        return places

    def end_copy(self, places: np.ndarray, bytes_: np.ndarray, threads: np.ndarray) -> None:
        """Write the bytes of a copy: the threads that copied may now read them, others only after a barrier."""
        self._awaited[places] = False
        self._put(places, bytes_, threads)

    def begin_use(self, places: np.ndarray, element: int) -> np.ndarray:
        """Return ``(…, element)`` bytes that an MMA of all warps reads until :meth:`end_use`.

        The MMA reads through another path (PTX: proxy) than threads write, so a fence is needed besides the barrier.
        """
        spread = places[..., None] + np.arange(element)
        if places.min() < 0 or places.max() + element > self.size:
            raise Fault(f"an MMA reads beyond the {self.size} bytes of shared memory")
        if self._awaited[spread].any():
            raise Fault("an MMA reads what an asynchronous copy has not yet filled")
        if ((self._writer[spread] >= 0) & (self._written[spread] == self.barriers)).any():
            raise Fault("an MMA of all warps reads what a thread has written, with no barrier between them")
        if ((self._writer[spread] >= 0) & (self._fenced[spread] == self.fences)).any():
            raise Fault("an MMA reads what a thread has written, with no fence.proxy.async between them")
        np.add.at(self._in_use, np.unique(spread), 1)
        return self._bytes[spread]

    def end_use(self, places: np.ndarray, element: int, by_all: bool = False) -> None:
        """End the use of bytes by an MMA that has been waited for.

        Args:
            places, element: As for :meth:`begin_use`.
            by_all: Whether all threads have waited, so that they may write the bytes without a barrier.
        """
        spread = np.unique(places[..., None] + np.arange(element))
        self._in_use[spread] -= 1
        if by_all:
            return
        self._reader[spread], self._other_threads[spread], self._other_warps[spread] = 0, True, True
        self._was_read[spread], self._was_read_in_warp[spread] = self.barriers, self.warp_barriers[0]

    def _accessed(self, offsets: np.ndarray, size: int, threads: np.ndarray, what: str) -> np.ndarray:
        first = offsets.astype(np.int64)
        if (first % size).any():
            raise Fault(f"{size} bytes of shared memory are {what} at {int(first[first % size != 0][0])}: not aligned")
        if first.size and first.max() + size > self.size:
            raise Fault(f"{size} bytes are {what} at {int(first.max())} of {self.size} bytes of shared memory")
        return first[:, None] + np.arange(size)

    def _put(self, places: np.ndarray, bytes_: np.ndarray, threads: np.ndarray) -> None:
        self._bytes[places] = bytes_
        self._writer[places] = threads[:, None]
        if not _nearly_equal(self._bytes[places], bytes_):
            raise Fault("threads write different numbers to the same shared memory at once")
        self._fenced[places] = self.fences
        self._written[places] = self.barriers
        self._written_in_warp[places] = self.warp_barriers[threads // LANES][:, None]

    def _check_writing(self, places: np.ndarray, bytes_: np.ndarray, threads: np.ndarray) -> None:
        who = np.broadcast_to(threads[:, None], places.shape)
        changed = self._bytes[places] != bytes_  # writing the same bytes again does no harm
        if self._awaited[places].any():
            raise Fault("shared memory is written that an asynchronous copy will fill")
        if (changed & (self._in_use[places] > 0)).any():
            raise Fault("shared memory is written while an MMA that has not been waited for reads it")
        written, in_warp = self._written[places], self._written_in_warp[places]
        self._check(who, np.where(changed, self._writer[places], -1), written, in_warp, "writes over", "wrote")
        readers = np.where(changed, self._reader[places], -1)
        self._check(who, readers, self._was_read[places], self._was_read_in_warp[places], "writes over", "read")
        now = changed & (self._was_read[places] == self.barriers)
        if (now & self._other_warps[places]).any():
            raise Fault("a thread writes over what several warps read, with no barrier between them")
        in_warp = self._was_read_in_warp[places] == self.warp_barriers[who // LANES]
        if (now & in_warp & self._other_threads[places]).any():
            raise Fault("a thread writes over what several threads of its warp read, with no barrier between them")

    def _check(
        self, who: np.ndarray, other: np.ndarray, when: np.ndarray, in_warp: np.ndarray, does: str, did: str
    ) -> None:
        known = (other >= 0) & (other != who)
        same_warp = other // LANES == who // LANES
        races = known & np.where(same_warp, in_warp == self.warp_barriers[who // LANES], when == self.barriers)
        if races.any():
            thread, before = int(who[races][0]), int(other[races][0])
            raise Fault(f"thread {thread} {does} what thread {before} {did}, with no barrier between them")

    def _note_reading(self, places: np.ndarray, who: np.ndarray) -> None:
        warps = self.warp_barriers[who // LANES]
        before, same_time = self._reader[places], self._was_read[places] == self.barriers
        others, warps_before = self._other_threads[places], self._other_warps[places]
        self._reader[places] = who
        last = self._reader[places]  # the last of several threads that read at once
        other = ((before != who) & (before >= 0) & same_time) | (last != who)
        other_warp = ((before // LANES != who // LANES) & (before >= 0) & same_time) | (last // LANES != who // LANES)
        self._other_threads[places] = (others & same_time) | other
        self._other_warps[places] = (warps_before & same_time) | other_warp
        self._was_read[places] = self.barriers
        self._was_read_in_warp[places] = warps


def _nearly_equal(there: np.ndarray, written: np.ndarray) -> bool:
    """Return whether memory holds the bytes written, or float32 numbers that differ from them only by rounding.

    Triton has every thread of a row store the row's sum of squares. Threads fuse different squares with an addition
    (fma), so their sums differ in the last bits, and any of them may be read.
    """
    if np.array_equal(there, written):
        return True
    if there.shape[1] % 4:
        return False
    one, other = (np.ascontiguousarray(each).view(np.float32) for each in (there, written))
    size = np.nanmax(np.abs(other), initial=0)
    # Eight levels of pairwise sums of 256 squares, each rounded by 2⁻²⁴, in both numbers: 2⁻²⁰.
    return bool(np.allclose(one, other, rtol=0, atol=2.0**-20 * size, equal_nan=True))


def numbers_of(count: int, active: np.ndarray | None) -> np.ndarray:
    """Return the numbers of the active threads among ``count``; if ``active`` is None, all are."""
    return np.arange(count) if active is None else np.flatnonzero(active)
