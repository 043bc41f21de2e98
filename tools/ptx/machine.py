"""An emulator that runs the PTX of our kernels on the CPU, program by program, and checks every access to memory.

The emulator runs a kernel's compiled code (Triton's interpreter runs its source). A program is a thread block. Between
barriers its threads run together: threads that are ahead wait until the others reach the same instruction.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator, Sequence

import numpy as np

from tools.ptx import group_instructions, instructions
from tools.ptx.decoding import ACQUIRE, BARRIER, BRANCH, RETURN, Decoder
from tools.ptx.memory import Fault, GlobalMemory, SharedMemory
from tools.ptx.source import read_kernel
from tools.ptx.tensor_memory import TensorMemory

Array = np.ndarray
LANES = 32
LEFT_OVER = 0x7FC0DEAD  # the NaN that a register holds in threads that have not set it


@functools.lru_cache(maxsize=8)
def decoded(text: str) -> Decoder:
    """Decode the only kernel of a PTX module."""
    return Decoder(read_kernel(text), instructions.MAKERS | group_instructions.MAKERS)


class Launch:
    """One launch of a kernel.

    Args:
        text: The kernel's PTX.
        memory: The memory that the kernel's pointers point to.
        grid: Programs along x, y and z.
        arguments: Addresses, integers or floats, in the order of the kernel's parameters.
        shared: Bytes of shared memory of a program.
    """

    def __init__(
        self, text: str, memory: GlobalMemory, grid: tuple[int, int, int], arguments: Sequence[int | float], shared: int
    ) -> None:
        self.decoder, self.memory, self.grid, self.shared = decoded(text), memory, grid, shared
        kernel = self.decoder.kernel
        self.threads, self.count = kernel.threads, int(np.prod(grid))
        kinds = kernel.parameters.items()
        self._template = self.decoder.template(
            {name: _as_bits(value, kind) for (name, kind), value in zip(kinds, arguments, strict=True)}
        )
        self.released: dict[int, Array] = {}  # by address: the programs whose writes are visible after an acquire there

    def run(self, resident: int = 1, seed: int = 0) -> None:
        """Run all programs, ``resident`` at a time; they take turns in random order and switch before each acquire.

        Raises:
            Fault: A program does something that PTX does not allow, such as a race.
        """
        self.memory.forget_writers()
        order = random.Random(seed)
        waiting = list(range(self.count))
        if resident > 1:
            order.shuffle(waiting)  # a GPU may start programs in any order
        running: list[Iterator[None]] = []
        while waiting or running:
            while waiting and len(running) < resident:
                running.append(Program(self, waiting.pop(0), list(self._template)).run())
            each = order.choice(running)
            if next(each, self) is self:
                running.remove(each)


class Program:
    """The state of one program: registers, shared memory, copies that have not ended."""

    def __init__(self, launch: Launch, number: int, registers: list[Array | None]) -> None:
        self.launch, self.number, self.threads = launch, number, launch.threads
        self._registers = registers
        self.shared = SharedMemory(launch.shared, self.threads)
        self._at = 0  # index of the current instruction
        self.tensor = TensorMemory(self.shared)
        self._copies: dict[int, list[tuple[Array, Array, Array]]] = {}  # by warp
        self._groups: dict[int, list[list[tuple[Array, Array, Array]]]] = {}
        self.seen = np.zeros(launch.count, bool)  # the programs whose writes this program may read
        self.seen[number] = True
        self._acquired = self.seen.copy()  # what some thread has acquired; ``seen`` after the next barrier
        self._wrote = np.zeros(self.threads, bool)  # which threads have written to global memory since the last barrier
        self.unfinished: set[int] = set()  # slots of accumulators of MMAs that have not been waited for
        self._uses: list[tuple[Array, int]] = []
        self._use_groups: list[list[tuple[Array, int]]] = []
        self._name_place()

    def _name_place(self) -> None:
        x, y, z = self.launch.grid
        place = {"%ctaid.x": self.number % x, "%ctaid.y": self.number // x % y, "%ctaid.z": self.number // (x * y)}
        place |= {"%nctaid.x": x, "%nctaid.y": y, "%nctaid.z": z}
        slots = self.launch.decoder.slots
        for name, value in place.items():
            self._registers[slots[name]] = np.full(self.threads, value, np.uint32)
        self._registers[slots["%tid.x"]] = np.arange(self.threads, dtype=np.uint32)

    def get(self, slot: int) -> Array:
        """Return a register of all threads."""
        if slot in self.unfinished:
            raise Fault("an accumulator is used before its MMA has been waited for")
        return self.peek(slot)

    def peek(self, slot: int) -> Array:
        """Return a register, even an accumulator of an unfinished MMA: moves and later MMAs may read it."""
        found = self._registers[slot]
        if found is None:
            raise Fault("a register is read before it is set")
        return found

    def peek_or_nothing(self, slot: int, bits: int) -> Array:
        """Return a register, or NaN if it is unset, as the unused half of a pair of registers may be."""
        found = self._registers[slot]
        return np.full(self.threads, LEFT_OVER).astype(f"uint{bits}") if found is None else found

    def put(self, slot: int, values: Array, active: Array | None) -> None:
        """Set a register of the active threads."""
        if active is not None:
            values = np.where(active, values, self._old(slot, values.dtype))
        self._registers[slot] = values

    def put_some(self, slot: int, values: Array, threads: Array) -> None:
        """Set a register of some threads, by their numbers; bytes go into registers of 16 bits."""
        dtype = np.dtype(np.uint16) if values.itemsize == 1 else values.dtype
        if len(threads) == self.threads:
            self._registers[slot] = np.ascontiguousarray(values, dtype)
            return
        found = self._old(slot, dtype).copy()
        found[threads] = values
        self._registers[slot] = found

    def _old(self, slot: int, dtype: np.dtype) -> Array:
        old = self._registers[slot]
        return np.full(self.threads, LEFT_OVER).astype(dtype) if old is None else old

    def addresses(self, slot: int, offset: int, threads: Array) -> Array:
        """Return the addresses of some threads."""
        return self.get(slot)[threads].astype(np.int64).view(np.uint64) + np.uint64(offset & (1 << 64) - 1)

    def read_global(self, addresses: Array, size: int, count: int, aligned: int | None = None) -> Array:
        """Read numbers from global memory; if ``aligned`` is given, addresses must be multiples of it."""
        if aligned and (addresses % np.uint64(aligned)).any():
            raise Fault(f"a copy of {aligned} bytes begins at an address that is not a multiple of {aligned}")
        return self.launch.memory.read(addresses, size, count, self.number, self.seen)

    def write_global(self, addresses: Array, values: Array, threads: Array) -> None:
        """Write numbers to global memory."""
        self.launch.memory.write(addresses, values, self.number, self.seen)
        self._wrote[threads] = True

    def add(self, addresses: Array, values: Array, threads: Array, release: bool, acquire: bool) -> Array:
        """Add to numbers in global memory, one thread after another; return the old numbers."""
        found = []
        if release and np.delete(self._wrote, threads).any():
            raise Fault("a thread releases what others have written, with no barrier between them")
        for address, value in zip(addresses.tolist(), values.tolist(), strict=True):
            if acquire:
                self._acquire(address)
            if release:
                before = self.launch.released.get(address)
                self.launch.released[address] = self.seen.copy() if before is None else before | self.seen
            found.append(self.launch.memory.add_atomically(address, value))
        return np.array(found, np.uint32)

    def acquire(self, addresses: Array) -> Array:
        """Read numbers; from the next barrier on, the program may read what was written before they were released."""
        for address in addresses.tolist():
            self._acquire(address)
        return np.array([[self.launch.memory.load_atomically(each)] for each in addresses.tolist()], np.uint32)

    def _acquire(self, address: int) -> None:
        if address in self.launch.released:
            self._acquired = self._acquired | self.launch.released[address]

    def copy(self, offsets: Array, bytes_: Array, threads: Array) -> None:
        """Begin an asynchronous copy to shared memory."""
        places = self.shared.begin_copy(offsets, bytes_, threads)
        for warp in np.unique(threads // LANES):
            its = threads // LANES == warp
            self._copies.setdefault(warp, []).append((places[its], bytes_[its], threads[its]))

    def commit(self, active: Array | None) -> None:
        """Put the copies that each warp has begun since its last commit into a group."""
        for warp in self._warps(active):
            self._groups.setdefault(warp, []).append(self._copies.pop(warp, []))

    def wait(self, left: int, active: Array | None) -> None:
        """End each warp's groups of copies except the last ``left``; copies end as late as PTX allows."""
        for warp in self._warps(active):
            groups = self._groups.get(warp, [])
            while len(groups) > left:
                for places, bytes_, threads in groups.pop(0):
                    self.shared.end_copy(places, bytes_, threads)

    def _warps(self, active: Array | None) -> list[int]:
        """Return the active warps; raise Fault if only a part of a warp is active."""
        threads = np.ones(self.threads, bool) if active is None else active
        by_warp = threads.reshape(-1, LANES)
        if (by_warp.any(axis=1) != by_warp.all(axis=1)).any():
            raise Fault("only a part of a warp runs an instruction that the whole warp must run")
        return np.flatnonzero(by_warp[:, 0]).tolist()

    def use(self, places: Array, element: int) -> Array:
        """Return the shared memory that an MMA reads; the bytes are in use until the MMA has been waited for."""
        self._uses.append((places, element))
        return self.shared.begin_use(places, element)

    def commit_products(self) -> None:
        """Put the MMAs issued since the last commit into a group."""
        self._use_groups.append(self._uses)
        self._uses = []

    def wait_for_products(self, left: int) -> None:
        """Wait for all groups of MMAs except the last ``left``."""
        while len(self._use_groups) > left:
            for places, element in self._use_groups.pop(0):
                self.shared.end_use(places, element)
        if left == 0:
            self.unfinished.clear()

    def pass_warp_barrier(self, active: Array | None) -> None:
        """Order the accesses of a warp's threads to shared memory."""
        self.shared.warp_barriers[self._warps(active)] += 1

    def _pass_barrier(self) -> None:
        self.shared.barriers += 1
        self.shared.warp_barriers += 1
        self.seen = self._acquired
        self._wrote[:] = False

    def run(self) -> Iterator[None]:
        """Run the program to its end; yield before each acquire, so that other programs get a turn."""
        code = self.launch.decoder.code
        places, alive = np.zeros(self.threads, np.int64), np.ones(self.threads, bool)
        waits = np.zeros(self.threads, bool)
        with np.errstate(all="ignore"):
            while alive.any():
                ready = alive & ~waits
                if not ready.any():
                    if not waits.all():
                        raise Fault("threads wait at a barrier that others never reach")
                    waits[:] = False
                    self._pass_barrier()
                    continue
                at = int(places[ready].min())
                here = ready & (places == at)
                others = places[ready & ~here]
                active = None if here.all() else here
                at = self._run_straight(at, int(others.min()) if others.size else len(code), active)
                places[here] = at
                if at == len(code) or (others.size and at == others.min()):
                    alive[here] &= at != len(code)
                    continue
                control, mask = code[at].control, self._guarded(at, here)
                if control == ACQUIRE:
                    yield
                    self._act(at, mask)
                elif control == BARRIER:
                    waits |= mask
                elif control == RETURN:
                    alive &= ~mask
                places[here] = at + 1
                if control == BRANCH:
                    places[mask] = code[at].target
        self.tensor.check_end()

    def _run_straight(self, at: int, end: int, active: Array | None) -> int:
        """Run instructions up to a branch, return, barrier or acquire, or to ``end``; return the index reached."""
        code = self.launch.decoder.code
        while at < end and code[at].control is None:
            each = code[at]
            mask = active
            if each.guard is not None:
                guard = self.get(each.guard)
                guard = ~guard if each.instruction.negated else guard
                mask = guard if active is None else guard & active
                if not mask.any():
                    at += 1
                    continue
                mask = None if mask.all() else mask
            self._act(at, mask)
            at += 1
        return at

    def _guarded(self, at: int, here: Array) -> Array:
        each = self.launch.decoder.code[at]
        if each.guard is None:
            return here
        guard = self.get(each.guard)
        return here & (~guard if each.instruction.negated else guard)

    def _act(self, at: int, active: Array | None) -> None:
        self._at = at
        each = self.launch.decoder.code[at]
        try:
            each.action(self, active)
        except Fault as fault:
            raise Fault(f"{each.instruction}: program {self.number}: {fault}") from None


def _as_bits(value: int | float, kind: str) -> int:
    if kind == "f32":
        return int(np.array(value, np.float32).view(np.uint32))
    return int(value) & (1 << (64 if kind == "u64" else 32)) - 1
