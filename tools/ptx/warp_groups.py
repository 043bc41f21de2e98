"""``wgmma``: MMAs of four warps together. Factors are in shared memory; the left one may be in registers.

The PTX ISA defines which thread holds which element, and the descriptors of matrices in shared memory ("Asynchronous
warpgroup level matrix instructions"). The emulator computes an MMA when it is issued; until it has been waited for, its
inputs may not be written, and its accumulators not be used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tools.ptx.arithmetic import as_bits, as_kind
from tools.ptx.tensor_cores import LANES, factors, fragment_of_left, fragment_of_sums, toward_zero

WARPS = 4
ROWS = 64
_SWIZZLED = {0: 16, 1: 128, 2: 64, 3: 32}  # bytes of a swizzled row, by the mode in a descriptor
_ROWS_OF_ATOM = 8


@dataclass(frozen=True)
class Shape:
    """The shape ``m64nNkK`` of an MMA, and the kind of its factors: ``f16``, ``bf16`` or ``tf32``."""

    columns: int
    inner: int
    kind: str

    @property
    def element(self) -> int:
        """Bytes of an element of a factor."""
        return 4 if self.kind == "tf32" else 2


def shape_of(opcode: str) -> Shape:
    """Return the shape in an opcode such as ``wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16``.

    Raises:
        NotImplementedError: The opcode has a form that is not implemented here.
    """
    *_, shape, total, left, right = opcode.split(".")
    if total != "f32" or left != right or left not in ("f16", "bf16", "tf32") or not shape.startswith("m64n"):
        raise NotImplementedError(opcode)
    columns, _, inner = shape.removeprefix("m64n").partition("k")
    if int(inner) != (8 if left == "tf32" else 16):
        raise NotImplementedError(opcode)
    return Shape(int(columns), int(inner), left)


def places(descriptor: int, outer: int, inner: int, element: int, outer_first: bool) -> np.ndarray:
    """Return the byte offsets ``(outer, inner)`` of a matrix's elements in shared memory.

    Args:
        descriptor: The 64 bits that describe the matrix.
        outer: Rows of the left factor, or columns of the right one.
        inner: Size of the other dimension, over which an MMA sums.
        element: Bytes of an element.
        outer_first: Whether neighbours along the outer dimension are adjacent (the factor is transposed).

    Raises:
        NotImplementedError: The descriptor has no swizzling, or a base offset.
    """
    start, leading, stride = ((descriptor >> shift & 0x3FFF) << 4 for shift in (0, 16, 32))
    row = _SWIZZLED[descriptor >> 62]
    if row == 16 or descriptor >> 49 & 7:
        raise NotImplementedError(f"the descriptor {descriptor:#x}")
    i, j = np.arange(outer)[:, None], np.arange(inner)[None, :]
    if outer_first:
        wide = row // element  # of the outer dimension in a row
        offset = i % wide * element + i // wide * leading + j % _ROWS_OF_ATOM * row + j // _ROWS_OF_ATOM * stride
    else:
        offset = i % _ROWS_OF_ATOM * row + i // _ROWS_OF_ATOM * stride + j * element
        if inner * element > row:
            raise NotImplementedError("a row longer than the swizzle's row")
    address = start + offset
    return address ^ (address >> 7 & row // 16 - 1) << 4


def numbers_at(bytes_: np.ndarray, kind: str) -> np.ndarray:
    """Return elements ``(outer, inner)`` in float64 from their bytes ``(outer, inner, size)``."""
    if kind == "tf32":
        return factors(np.ascontiguousarray(bytes_).view(np.uint32)[..., 0], kind)[..., 0]
    return as_kind(np.ascontiguousarray(bytes_).view(np.uint16)[..., 0], kind).astype(np.float64)


def left_in_registers(registers: list[np.ndarray], shape: Shape) -> np.ndarray:
    """Return the left factor of each group, ``(groups, 64, inner)``, from four registers of all threads."""
    rows, columns = fragment_of_left(shape.kind != "tf32")
    by_warp = np.stack([each.reshape(-1, LANES) for each in registers], axis=1)  # (warps, 4, lanes)
    found = np.zeros((len(by_warp), 16, shape.inner))
    found[:, rows, columns] = factors(by_warp, shape.kind)
    return found.reshape(-1, ROWS, shape.inner)


def add(left: np.ndarray, right: np.ndarray, total: list[np.ndarray] | None) -> list[np.ndarray]:
    """Return the registers of ``total + left @ right``.

    Args:
        left: ``(groups, 64, inner)``.
        right: ``(groups, columns, inner)``.
        total: Registers of all threads, four for each eight columns; None: 0.
    """
    product = left @ right.swapaxes(1, 2)
    tiles = product.reshape(-1, 16, product.shape[2] // 8, 8).swapaxes(1, 2)  # (warps, tiles, 16, 8)
    rows, columns = fragment_of_sums()
    found = tiles[:, :, rows, columns]  # (warps, tiles, 4, lanes)
    if total is not None:
        by_warp = np.stack([each.reshape(-1, LANES) for each in total], axis=1)
        found = found + as_kind(by_warp, "f32").reshape(found.shape)
    bits = as_bits(toward_zero(found)).reshape(len(found), -1, LANES)
    return [np.ascontiguousarray(bits[:, i]).reshape(-1) for i in range(bits.shape[1])]
