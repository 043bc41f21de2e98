"""Tensor memory of compute capability 10.0, and ``tcgen05``, which multiplies into it.

Tensor memory has 128 lanes of 512 32-bit columns. A result of 128 rows has a row in each lane; a result of 64 rows
uses 16 of each warp's 32 lanes (PTX ISA, "Tensor memory", layouts D and F). One thread starts an MMA for the whole
program; a barrier in shared memory (``mbarrier``) signals its end. The emulator computes an MMA when it starts; until
the barrier has been waited for, the memory that the MMA reads or writes may not be accessed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tools.ptx.arithmetic import as_bits, as_kind
from tools.ptx.memory import Fault, SharedMemory
from tools.ptx.tensor_cores import LANES, factors, toward_zero
from tools.ptx.warp_groups import numbers_at, places

COLUMNS = 512
_HALF = 16  # lanes that each half of a warp accesses
_SWIZZLES = {2: 1, 4: 2, 6: 3}  # swizzles of 128, 64 and 32 bytes: mode in a tcgen05 descriptor, mode in a wgmma one
_KINDS = {"f16": ("f16", "bf16"), "tf32": (None, None, "tf32")}
_FLOAT32 = 1


@dataclass(frozen=True)
class Form:
    """The fields of an instruction descriptor.

    Attributes:
        rows, columns: The result's rows and columns.
        kind: The kind of the factors: ``f16``, ``bf16`` or ``tf32``.
        transposed: For the left and the right factor, whether neighbours along the outer dimension are adjacent.
    """

    rows: int
    columns: int
    kind: str
    transposed: tuple[bool, bool]

    @property
    def inner(self) -> int:
        """The dimension that is summed over."""
        return 8 if self.kind == "tf32" else 16

    @property
    def element(self) -> int:
        """Bytes of an element of a factor."""
        return 4 if self.kind == "tf32" else 2


def form(descriptor: int, kind: str) -> Form:
    """Return the fields of an instruction descriptor of ``kind::f16`` or ``kind::tf32``.

    Raises:
        NotImplementedError: The descriptor has a form that is not implemented here.
    """
    left, right = descriptor >> 7 & 7, descriptor >> 10 & 7
    negated, sparse, total = descriptor >> 13 & 3, descriptor >> 2 & 1, descriptor >> 4 & 3
    names = _KINDS[kind]
    if negated or sparse or total != _FLOAT32 or left != right or left >= len(names) or names[left] is None:
        raise NotImplementedError(f"the instruction descriptor {descriptor:#x}")
    rows, columns = (descriptor >> 24 & 31) << 4, (descriptor >> 17 & 63) << 3
    if rows not in (64, 128):
        raise NotImplementedError(f"an MMA of {rows} rows")
    return Form(rows, columns, str(names[left]), (bool(descriptor >> 15 & 1), bool(descriptor >> 16 & 1)))


@dataclass
class _Product:
    """The memory that an MMA reads and writes until it has been waited for."""

    cells: list[tuple[np.ndarray, slice]]  # lanes and columns of tensor memory
    uses: list[tuple[np.ndarray, int]]  # offsets in shared memory, and bytes of an element
    has_ended: bool = False


@dataclass
class _Barrier:
    phases: int = 0  # number of phases that have ended
    products: list[_Product] = field(default_factory=list)

    @property
    def is_waited_for(self) -> bool:
        """Whether all MMAs that the barrier tracks have ended."""
        return all(product.has_ended for product in self.products)


class TensorMemory:
    """A program's tensor memory, at first filled with NaN, and its barriers in shared memory."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        self._cells = np.full((4 * LANES, COLUMNS), 0xFFFFFFFF, np.uint32)
        self._stored = np.full((4 * LANES, COLUMNS), -1, np.int64)  # barriers of the program passed at the store
        self._on_the_way = np.zeros((4 * LANES, COLUMNS), bool)  # stored, and not yet waited for
        self._busy = np.zeros((4 * LANES, COLUMNS), np.int64)  # MMAs that use it and have not been waited for
        self._products: list[_Product] = []  # MMAs that have not ended
        self._barriers: dict[int, _Barrier] = {}
        self.allocated = 0

    def allocate(self, columns: int) -> int:
        """Allocate columns for the program; return their address."""
        if self.allocated or columns > COLUMNS:
            raise Fault(f"{columns} columns of tensor memory are requested beside {self.allocated} allocated ones")
        self.allocated = columns
        return 0

    def free(self, columns: int) -> None:
        """Free the allocated columns."""
        if columns != self.allocated:
            raise Fault(f"{columns} columns of tensor memory are freed, but {self.allocated} are allocated")
        self.allocated = 0

    def load(self, addresses: np.ndarray, split: int, count: int) -> list[np.ndarray]:
        """Load the registers of each thread of whole warps (``tcgen05.ld.16x32bx2``)."""
        lanes, columns = self._cells_of(addresses, split, count)
        self._check_free(lanes, columns, "read")
        if self._on_the_way[lanes, columns].any():
            raise Fault("tensor memory is read before a store to it has been waited for")
        return list(np.ascontiguousarray(self._cells[lanes, columns].T))

    def store(self, addresses: np.ndarray, split: int, registers: np.ndarray) -> None:
        """Store each thread's registers ``(threads, count)``."""
        lanes, columns = self._cells_of(addresses, split, registers.shape[1])
        self._check_free(lanes, columns, "written")
        self._cells[lanes, columns] = registers
        self._stored[lanes, columns] = self._shared.barriers
        self._on_the_way[lanes, columns] = True

    def wait_for_stores(self) -> None:
        """Wait until all stores have ended (``tcgen05.wait::st``)."""
        self._on_the_way[:] = False

    def multiply(self, to: int, left: int, right: int, adds: bool, found: Form, left_here: bool) -> None:
        """Compute one MMA.

        Args:
            to: Address of the result.
            left: Address of the left factor, or its descriptor in shared memory.
            right: Descriptor of the right factor.
            adds: Whether the product is added to the old result.
            found: The fields of the instruction descriptor.
            left_here: Whether the left factor lies in tensor memory.
        """
        uses: list[tuple[np.ndarray, int]] = []
        lanes = np.arange(found.rows)
        lanes = lanes if found.rows == 4 * LANES else lanes // _HALF * LANES + lanes % _HALF
        rows = lanes + (to >> 16)  # a 64-row result may begin at lane 16, beside another one in the same columns
        target = slice(to & 0xFFFF, (to & 0xFFFF) + found.columns)
        touched = [(rows, target)]
        if left_here:
            first = left & 0xFFFF
            touched.append((lanes + (left >> 16), slice(first, first + found.inner * found.element // 4)))
            a = factors(self._visible(*touched[1]), found.kind).reshape(found.rows, found.inner)
        else:
            a = self._factor(left, found.rows, found, found.transposed[0], uses)
        b = self._factor(right, found.columns, found, found.transposed[1], uses)
        total = as_kind(self._visible(rows, target), "f32") if adds else np.zeros((found.rows, found.columns))
        self._cells[rows, target] = as_bits(toward_zero(total + a @ b.T))
        self._products.append(_Product(touched, uses))
        for cells in touched:
            self._busy[cells] += 1

    def commit(self, barrier: int) -> None:
        """Let a barrier track all MMAs that have not ended, even those that other barriers track too."""
        if barrier not in self._barriers:
            raise Fault("a barrier tracks MMAs before it is initialized")
        self._barriers[barrier].products += self._products
        self._barriers[barrier].phases += 1

    def make_barrier(self, barrier: int, count: int) -> None:
        """Initialize a barrier (``mbarrier.init``)."""
        if barrier in self._barriers:
            raise Fault("a barrier is initialized that exists already")
        if count != 1:
            raise NotImplementedError(f"a barrier that counts to {count}")
        self._barriers[barrier] = _Barrier()

    def end_barrier(self, barrier: int) -> None:
        """Invalidate a barrier (``mbarrier.inval``)."""
        if not self._barriers.pop(barrier, _Barrier(products=self._products)).is_waited_for:
            raise Fault("a barrier is invalidated before it has been waited for")

    def has_ended(self, barrier: int, parity: int, by_all: bool) -> bool:
        """Return whether a barrier's phase of this parity has ended; if so, end the MMAs that the barrier tracks.

        Memory that these MMAs read may then be written again, whichever warp started them. ``by_all`` says whether all
        threads ask at once.
        """
        if barrier not in self._barriers:
            raise Fault("a barrier is waited for before it is initialized")
        here = self._barriers[barrier]
        if here.phases % 2 == parity:
            return False
        for product in here.products:
            if not product.has_ended:
                self._end(product, by_all)
        here.products = []
        self._products = [product for product in self._products if not product.has_ended]
        return True

    def _end(self, product: _Product, by_all: bool) -> None:
        product.has_ended = True
        for use in product.uses:
            self._shared.end_use(*use, by_all)
        for cells in product.cells:
            self._busy[cells] -= 1

    def check_end(self) -> None:
        """Check that the program has freed its columns: other programs would wait for them forever."""
        if self.allocated:
            raise Fault("a program ends without freeing its tensor memory")

    def _factor(self, descriptor: int, outer: int, found: Form, outer_first: bool, uses: list) -> np.ndarray:
        mode = descriptor >> 61
        if mode not in _SWIZZLES:
            raise NotImplementedError(f"the descriptor {descriptor:#x}")
        fields = descriptor & (1 << 46) - 1 | _SWIZZLES[mode] << 62
        at = places(fields, outer, found.inner, found.element, outer_first)
        uses.append((at, found.element))
        return numbers_at(self._shared.begin_use(at, found.element), found.kind)

    def _visible(self, lanes: np.ndarray, columns: slice) -> np.ndarray:
        """Return cells that an MMA reads; raise Fault unless a barrier separates the MMA from stores to them."""
        if self._on_the_way[lanes, columns].any():
            raise Fault("an MMA reads tensor memory before a store to it has been waited for")
        if (self._stored[lanes, columns] == self._shared.barriers).any():
            raise Fault("an MMA reads what threads stored in tensor memory, with no barrier between them")
        return np.ascontiguousarray(self._cells[lanes, columns])

    def _cells_of(self, addresses: np.ndarray, split: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        thread = np.arange(len(addresses)) % LANES
        lanes = (addresses >> np.uint32(16)).astype(np.int64) + thread % _HALF
        first = (addresses & np.uint32(0xFFFF)).astype(np.int64) + split * (thread // _HALF)
        if lanes.max() >= 4 * LANES or first.max() + count > self.allocated:
            raise Fault(f"{count} columns from {int(first.max())} on are accessed, with {self.allocated} allocated")
        return lanes[:, None], first[:, None] + np.arange(count)

    def _check_free(self, lanes: np.ndarray, columns: np.ndarray, what: str) -> None:
        if self._busy[lanes, columns].any():
            raise Fault(f"tensor memory is {what} while an MMA that has not been waited for uses it")
