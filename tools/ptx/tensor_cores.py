"""Instructions of a whole warp: MMAs of tensor cores, matrices from shared memory, exchange between threads.

The PTX ISA defines which thread holds which element ("Matrix fragments" of ``mma`` and ``ldmatrix``). As in tensor
cores, an MMA adds exact products to its accumulators and truncates the sums to float32.
"""

from __future__ import annotations

import numpy as np

from tools.ptx.arithmetic import as_bits, as_kind

LANES = 32
_LANE = np.arange(LANES)
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4
_ROWS = np.stack([_GROUP, _GROUP, _GROUP + 8, _GROUP + 8])  # rows of the accumulators in each thread's four registers
_COLUMNS = np.stack([2 * _IN_GROUP, 2 * _IN_GROUP + 1] * 2)


def _left(half: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of the left factor's elements ``(4 registers, 32 lanes, elements of a register)``."""
    rows = np.stack([_GROUP, _GROUP + 8] * 2)
    if not half:
        columns = np.stack([_IN_GROUP, _IN_GROUP, _IN_GROUP + 4, _IN_GROUP + 4])
        return rows[:, :, None], columns[:, :, None]
    columns = np.stack([2 * _IN_GROUP, 2 * _IN_GROUP, 2 * _IN_GROUP + 8, 2 * _IN_GROUP + 8])
    return np.broadcast_to(rows[:, :, None], (4, LANES, 2)), columns[:, :, None] + np.arange(2)


def _right(half: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return row (of the inner dimension) and column of the right factor's elements, as :func:`_left`."""
    columns = np.stack([_GROUP, _GROUP])
    if not half:
        return np.stack([_IN_GROUP, _IN_GROUP + 4])[:, :, None], columns[:, :, None]
    rows = np.stack([2 * _IN_GROUP, 2 * _IN_GROUP + 8])
    return rows[:, :, None] + np.arange(2), np.broadcast_to(columns[:, :, None], (2, LANES, 2))


def fragment_of_left(half: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of each element of a left factor in a warp's registers; ``half``: 16-bit elements."""
    return _PLACES[half][0]


def fragment_of_sums() -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of each sum in a warp's registers ``(4 registers, 32 lanes)``."""
    return _ROWS, _COLUMNS


_PLACES = {half: (_left(half), _right(half)) for half in (False, True)}


def toward_zero(exact: np.ndarray) -> np.ndarray:
    """Round float64 to float32, toward 0."""
    near = exact.astype(np.float32)
    return np.where(np.abs(near) > np.abs(exact), np.nextafter(near, np.float32(0)), near)


def factors(registers: np.ndarray, kind: str) -> np.ndarray:
    """Return the numbers in registers ``(…,)`` of a factor as float64 ``(…, elements of a register)``."""
    if kind == "tf32":
        cut = registers & np.uint32(0xFFFFE000)
        return as_kind(cut, "f32").astype(np.float64)[..., None]
    halves = np.stack([registers & np.uint32(0xFFFF), registers >> np.uint32(16)], axis=-1).astype(np.uint16)
    return as_kind(np.ascontiguousarray(halves), kind).astype(np.float64)


def multiply(kind: str, left: list[np.ndarray], right: list[np.ndarray], total: list[np.ndarray]) -> list[np.ndarray]:
    """Return the registers of ``total + left @ right`` for every warp (``mma.sync``, m16n8k16 or for tf32 m16n8k8).

    Args:
        kind: The kind of the factors: ``f16``, ``bf16`` or ``tf32``.
        left, right, total: Registers of all threads.
    """
    half = kind != "tf32"
    warps, inner = len(total[0]) // LANES, 16 if half else 8
    (left_rows, left_columns), (right_rows, right_columns) = _PLACES[half]
    a, b, c = np.zeros((warps, 16, inner)), np.zeros((warps, inner, 8)), np.zeros((warps, 16, 8))
    a[:, left_rows, left_columns] = factors(_by_warp(left), kind)
    b[:, right_rows, right_columns] = factors(_by_warp(right), kind)
    c[:, _ROWS, _COLUMNS] = as_kind(_by_warp(total), "f32")
    found = as_bits(toward_zero(c + a @ b))[:, _ROWS, _COLUMNS]
    return [np.ascontiguousarray(found[:, i]).reshape(-1) for i in range(4)]


def multiply_bytes(left: list[np.ndarray], right: list[np.ndarray], total: list[np.ndarray]) -> list[np.ndarray]:
    """Return the registers of ``total + left @ right`` of signed bytes for every warp (``mma.sync``, m16n8k32)."""
    warps = len(total[0]) // LANES
    a, b = np.zeros((warps, 16, 32), np.int64), np.zeros((warps, 32, 8), np.int64)
    c = np.zeros((warps, 16, 8), np.int64)
    of_register = np.arange(4)
    for i, registers in enumerate(_bytes_by_warp(left).swapaxes(0, 1)):
        columns = 4 * _IN_GROUP[:, None] + 16 * (i // 2) + of_register
        a[:, (_GROUP + 8 * (i % 2))[:, None], columns] = registers
    for i, registers in enumerate(_bytes_by_warp(right).swapaxes(0, 1)):
        b[:, 4 * _IN_GROUP[:, None] + 16 * i + of_register, _GROUP[:, None]] = registers
    c[:, _ROWS, _COLUMNS] = _by_warp(total).view(np.int32)
    limits = np.iinfo(np.int32)
    found = np.clip(c + a @ b, limits.min, limits.max).astype(np.int32).view(np.uint32)[:, _ROWS, _COLUMNS]
    return [np.ascontiguousarray(found[:, i]).reshape(-1) for i in range(4)]


def _bytes_by_warp(registers: list[np.ndarray]) -> np.ndarray:
    """Return ``(warps, registers, lanes, 4)``."""
    words = np.ascontiguousarray(_by_warp(registers))
    return words.view(np.int8).reshape(*words.shape, 4)


def _by_warp(registers: list[np.ndarray]) -> np.ndarray:
    """Return ``(warps, registers, lanes)``."""
    return np.stack([each.reshape(-1, LANES) for each in registers], axis=1)


def rows_of_matrices(addresses: np.ndarray, matrices: int) -> np.ndarray:
    """Return the threads ``(warps, matrices, 8)`` that give ``ldmatrix`` the addresses of the rows to read."""
    first = np.arange(0, len(addresses), LANES)
    return first[:, None, None] + 8 * np.arange(matrices)[:, None] + np.arange(8)


def dealt(rows: np.ndarray, transposed: bool) -> list[np.ndarray]:
    """Return the registers into which ``ldmatrix`` loads matrices ``(warps, matrices, 8, 8)`` of 16-bit numbers."""
    rows = rows.swapaxes(2, 3) if transposed else rows
    pairs = np.ascontiguousarray(rows).view(np.uint32)  # (warps, matrices, 8, 4)
    return [np.ascontiguousarray(pairs[:, i]).reshape(-1) for i in range(rows.shape[1])]


def gathered(registers: list[np.ndarray], transposed: bool) -> np.ndarray:
    """Return the matrices that ``stmatrix`` stores from registers: the inverse of :func:`dealt`."""
    pairs = np.stack([each.reshape(-1, 8, 4) for each in registers], axis=1)
    rows = np.ascontiguousarray(pairs).view(np.uint16)
    return np.ascontiguousarray(rows.swapaxes(2, 3)) if transposed else rows


def exchanged(mode: str, values: np.ndarray, lane: np.ndarray, clamp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number that ``shfl.sync`` gives each thread, and whether the lane it names is in the segment."""
    this = np.arange(len(values)) % LANES
    segment, last = (clamp >> np.uint32(8)).astype(np.int64) & 31, clamp.astype(np.int64) & 31
    lane = lane.astype(np.int64) & 31
    lowest, highest = this & segment, (this & segment) | (last & ~segment)
    if mode == "up":
        other = this - lane
        within = other >= highest
    else:
        other = {"down": this + lane, "bfly": this ^ lane, "idx": lowest | (lane & ~segment)}[mode]
        within = other <= highest
    other = np.where(within, other, this)
    return values[np.arange(len(values)) - this + other], within
