"""Tensor memory of compute capability 10.0, and ``tcgen05``, which multiplies into it.

128 lanes of 512 columns of 32 bits. A result of 128 rows has a row in each lane; one of 64 rows has 16 of them in 16 of
each warp's 32 lanes (PTX ISA, "Tensor memory", layouts D and F). One thread starts a product for the whole program;
a barrier in shared memory (``mbarrier``) says when it has ended. It is computed when it starts; nothing may touch what
it reads and writes before the barrier has been waited for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tools.ptx.arithmetic import as_bits, as_kind
from tools.ptx.memory import Fault, SharedMemory
from tools.ptx.tensor_cores import LANES, factors, toward_zero
from tools.ptx.warp_groups import numbers_at, places

COLUMNS = 512
_HALF = 16  # lanes that a thread of each half of a warp reaches
_SWIZZLES = {2: 1, 4: 2, 6: 3}  # a descriptor's modes in the numbering of wgmma's: 128, 64 and 32 bytes
_KINDS = {"f16": ("f16", "bf16"), "tf32": (None, None, "tf32")}
_FLOAT32 = 1


@dataclass(frozen=True)
class Form:
    """What an instruction descriptor says.

    Attributes:
        rows, columns: The result's rows and columns.
        kind: The kind of the factors: ``f16``, ``bf16`` or ``tf32``.
        transposed: Of the left and the right factor: whether neighbours of its outer dimension lie side by side.
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
    """Return what an instruction descriptor of ``kind::f16`` or ``kind::tf32`` says.

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
        raise NotImplementedError(f"a product of {rows} rows")
    return Form(rows, columns, str(names[left]), (bool(descriptor >> 15 & 1), bool(descriptor >> 16 & 1)))


@dataclass
class _Product:
    """What a product reads and writes until it has been waited for."""

    cells: list[tuple[np.ndarray, slice]]  # lanes and columns of tensor memory
    uses: list[tuple[np.ndarray, int]]
    has_ended: bool = False


@dataclass
class _Barrier:
    phases: int = 0  # that have ended
    products: list[_Product] = field(default_factory=list)

    @property
    def is_waited_for(self) -> bool:
        """Whether all its products have ended."""
        return all(product.has_ended for product in self.products)


class TensorMemory:
    """A program's tensor memory, which begins as NaN, and its barriers in shared memory."""

    def __init__(self, shared: SharedMemory) -> None:
        self._shared = shared
        self._cells = np.full((4 * LANES, COLUMNS), 0xFFFFFFFF, np.uint32)
        self._stored = np.full((4 * LANES, COLUMNS), -1, np.int64)  # barriers of the program passed when it was stored
        self._on_the_way = np.zeros((4 * LANES, COLUMNS), bool)  # stored, and not yet waited for
        self._busy = np.zeros((4 * LANES, COLUMNS), np.int64)  # products that use it and have not been waited for
        self._products: list[_Product] = []  # that have not ended
        self._barriers: dict[int, _Barrier] = {}
        self.allocated = 0

    def allocate(self, columns: int) -> int:
        """Allocate columns for the program; return their address."""
        if self.allocated or columns > COLUMNS:
            raise Fault(f"{columns} columns of tensor memory are asked for beside {self.allocated}")
        self.allocated = columns
        return 0

    def free(self, columns: int) -> None:
        """Give the allocated columns back."""
        if columns != self.allocated:
            raise Fault(f"{columns} columns of tensor memory are given back, of {self.allocated}")
        self.allocated = 0

    def load(self, addresses: np.ndarray, split: int, count: int) -> list[np.ndarray]:
        """Return each thread's registers (``tcgen05.ld.16x32bx2``), of whole warps."""
        lanes, columns = self._cells_of(addresses, split, count)
        self._check_free(lanes, columns, "read")
        if self._on_the_way[lanes, columns].any():
            raise Fault("tensor memory is read before what was stored there has been waited for")
        return list(np.ascontiguousarray(self._cells[lanes, columns].T))

    def store(self, addresses: np.ndarray, split: int, registers: np.ndarray) -> None:
        """Store each thread's registers ``(threads, count)``."""
        lanes, columns = self._cells_of(addresses, split, registers.shape[1])
        self._check_free(lanes, columns, "written")
        self._cells[lanes, columns] = registers
        self._stored[lanes, columns] = self._shared.barriers
        self._on_the_way[lanes, columns] = True

    def wait_for_stores(self) -> None:
        """Wait until what threads have stored is there (``tcgen05.wait::st``)."""
        self._on_the_way[:] = False

    def multiply(self, to: int, left: int, right: int, adds: bool, found: Form, left_here: bool) -> None:
        """Compute one product.

        Args:
            to: Address of the result.
            left: Address of the left factor, or its descriptor in shared memory.
            right: Descriptor of the right factor.
            adds: Whether the product is added to what is there.
            found: The product's form.
            left_here: Whether the left factor lies in tensor memory.
        """
        uses: list[tuple[np.ndarray, int]] = []
        lanes = np.arange(found.rows)
        lanes = lanes if found.rows == 4 * LANES else lanes // _HALF * LANES + lanes % _HALF
        rows = lanes + (to >> 16)  # one of 64 rows may begin at lane 16: beside another in the same columns
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
        """Let a barrier count the end of all products so far, even of those that other barriers count too."""
        if barrier not in self._barriers:
            raise Fault("a barrier that nothing has made counts products")
        self._barriers[barrier].products += self._products
        self._barriers[barrier].phases += 1

    def make_barrier(self, barrier: int, count: int) -> None:
        """Make a barrier (``mbarrier.init``)."""
        if barrier in self._barriers:
            raise Fault("a barrier is made where there is one")
        if count != 1:
            raise NotImplementedError(f"a barrier that counts to {count}")
        self._barriers[barrier] = _Barrier()

    def end_barrier(self, barrier: int) -> None:
        """Take a barrier away (``mbarrier.inval``)."""
        if not self._barriers.pop(barrier, _Barrier(products=self._products)).is_waited_for:
            raise Fault("a barrier is taken away that has not been waited for")

    def has_ended(self, barrier: int, parity: int, by_all: bool) -> bool:
        """Return whether a barrier's phase of this parity has ended; if so, the products that it counts have ended.

        They then have read all that they read, whichever warp has started them. ``by_all`` says whether all threads
        ask at once.
        """
        if barrier not in self._barriers:
            raise Fault("a barrier is waited for that nothing has made")
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
        """Check that a program that ends keeps no columns: other programs would wait for them forever."""
        if self.allocated:
            raise Fault("a program ends with tensor memory that it has not given back")

    def _factor(self, descriptor: int, outer: int, found: Form, outer_first: bool, uses: list) -> np.ndarray:
        mode = descriptor >> 61
        if mode not in _SWIZZLES:
            raise NotImplementedError(f"the descriptor {descriptor:#x}")
        fields = descriptor & (1 << 46) - 1 | _SWIZZLES[mode] << 62
        at = places(fields, outer, found.inner, found.element, outer_first)
        uses.append((at, found.element))
        return numbers_at(self._shared.begin_use(at, found.element), found.kind)

    def _visible(self, lanes: np.ndarray, columns: slice) -> np.ndarray:
        """Return cells that a product may read: what threads have stored there is behind a barrier."""
        if self._on_the_way[lanes, columns].any():
            raise Fault("a product reads what was stored in tensor memory and not waited for")
        if (self._stored[lanes, columns] == self._shared.barriers).any():
            raise Fault("a product reads what threads stored in tensor memory, with no barrier between them")
        return np.ascontiguousarray(self._cells[lanes, columns])

    def _cells_of(self, addresses: np.ndarray, split: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        thread = np.arange(len(addresses)) % LANES
        lanes = (addresses >> np.uint32(16)).astype(np.int64) + thread % _HALF
        first = (addresses & np.uint32(0xFFFF)).astype(np.int64) + split * (thread // _HALF)
        if lanes.max() >= 4 * LANES or first.max() + count > self.allocated:
            raise Fault(f"{count} columns from {int(first.max())} on are used of {self.allocated} of tensor memory")
        return lanes[:, None], first[:, None] + np.arange(count)

    def _check_free(self, lanes: np.ndarray, columns: np.ndarray, what: str) -> None:
        if self._busy[lanes, columns].any():
            raise Fault(f"tensor memory is {what} that a product uses which has not been waited for")
