"""How many cycles a loop's instructions need at least, by what a multiprocessor can do in one.

A model for comparing kernels, not a clock: every unit works at its best rate, latency is hidden, and no access to
memory waits. What it gives is the largest of the units' times.

Sources. Rates of arithmetic: CUDA C++ Programming Guide, "Throughput of native arithmetic instructions" (results per
cycle and multiprocessor). Tensor cores: dense products of float16 with float32 sums, per cycle and multiprocessor, from
the architectures' white papers (A100: 1024; GA10x and AD10x GeForce: 256, half of their rate with float16 sums; H100:
2048; B200: 4096; RTX 50: 256), and of bytes with sums of 32 bits (A100: 2048; GA10x and AD10x GeForce, RTX 50: 1024;
H100: 4096; B200: 8192). Four schedulers issue one instruction of a warp each. Shared memory gives 128 bytes.

Assumed. The guide has rows of their own for comparisons, minima and maxima (64 results a cycle) and for products of
integers (64); here float32 comparisons, selections, minima and maxima count as float32 arithmetic, at 64 on 8.0 and 128
on others, and so does IMAD, by which compilers also move and add. Those rows were looked up for 7.x only, in a copy of
the guide; that they are the same for newer chips is not checked. A loop with many such instructions may take more.

In no unit, so as issue alone, count exchanges between threads (SHFL: 32 results a cycle by the same table, the time in
which four instructions are issued), votes, barriers, what the uniform unit does, and accesses to global and local
memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tools.gpu.machine_code import Instruction

SCHEDULERS = 4
LANES = 32
SHARED_BYTES = 128  # a cycle


@dataclass(frozen=True)
class Rates:
    """What a multiprocessor does in a cycle."""

    float32: int  # Additions, products or both at once
    integer: int  # additions and logic of 32-bit integers
    special: int  # Exponentials, reciprocals and roots
    tensor: int  # products with sum of float16 or bfloat16; TF32 is half of it
    tensor_bytes: int  # products with sum of bytes
    registers: int  # in all
    warps: int  # resident at most
    shared: int  # bytes of shared memory for all programs


RATES = {
    80: Rates(64, 64, 16, 1024, 2048, 65536, 64, 167_936),
    86: Rates(128, 64, 16, 256, 1024, 65536, 48, 102_400),
    89: Rates(128, 64, 16, 256, 1024, 65536, 48, 102_400),
    90: Rates(128, 64, 16, 2048, 4096, 65536, 64, 233_472),
    100: Rates(128, 64, 16, 4096, 8192, 65536, 64, 233_472),
    120: Rates(128, 64, 16, 256, 1024, 65536, 48, 102_400),
}
_RESERVED = 1024  # bytes of shared memory that the driver takes of each program
_REGISTER_UNIT = 256  # registers are given to warps in these steps

_FLOAT32 = re.compile(r"^(FADD|FMUL|FFMA|FSEL|FSETP|FMNMX|FADD2|FMUL2|FFMA2|HADD2|HMUL2|HFMA2|F2FP|IMAD)\b")
_INTEGER = re.compile(
    r"^(IADD3|IADD|VIADD|LOP3|ISETP|SEL|SHF|LEA|PRMT|IMNMX|VIMNMX|PLOP3|I2FP|BMSK|SGXT|MOV|P2R|R2P)\b"
)
_SPECIAL = re.compile(r"^(MUFU|F2F|F2I|I2F|POPC|FLO)\b")
_WARP_PRODUCT = re.compile(r"^HMMA\.(\d+)")
_BYTE_PRODUCT = re.compile(r"^IMMA\.(\d+)")
_GROUP_PRODUCT = re.compile(r"^HGMMA\.(?:SP\.)?(\d+)x(\d+)x(\d+)")
_SHAPES = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4, "16832": 16 * 8 * 32}
_WIDTHS = {"128": 16, "64": 8, "32": 4, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
_MATRIX = re.compile(r"\.MT?88\.([124])")  # how many at once; one if it does not say


@dataclass(frozen=True)
class Cycles:
    """Cycles of a multiprocessor that one pass through a loop takes, per program."""

    units: dict[str, float]  # by unit: issue, float32, integer, special, shared, tensor
    is_known: bool  # whether every product of tensor cores has a shape that the model knows

    @property
    def total(self) -> float:
        """Of the busiest unit."""
        return max(self.units.values(), default=0.0)

    @property
    def bound_by(self) -> str:
        """The busiest unit."""
        return max(self.units, key=lambda name: self.units[name], default="")


def cycles(loop: Sequence[Instruction], arch: int, num_warps: int) -> Cycles:
    """Return what one pass through a loop takes all warps of one program.

    Args:
        loop: Its instructions; each is taken once, whatever its predicate says.
        arch: Compute capability, a key of :data:`RATES`.
        num_warps: Warps of a program.
    """
    rates = RATES[arch]

    def count(pattern: re.Pattern[str]) -> int:
        return sum(pattern.match(each.opcode) is not None for each in loop)

    products, is_known = 0.0, True
    for each in loop:
        found = tensor_products(each.opcode, rates.tensor / rates.tensor_bytes)
        if found is None and (of_program := described_products(each)) is not None:
            found = of_program / num_warps  # one thread starts it for all warps
        if found is None:
            is_known = False
        else:
            products += found
    moved = sum(shared_bytes(each.opcode) for each in loop)
    of_a_warp = {
        "issue": len(loop) / SCHEDULERS,
        "float32": LANES * count(_FLOAT32) / rates.float32,
        "integer": LANES * count(_INTEGER) / rates.integer,
        "special": LANES * count(_SPECIAL) / rates.special,
        "shared": LANES * moved / SHARED_BYTES,
        "tensor": products / rates.tensor,
    }
    return Cycles({name: num_warps * value for name, value in of_a_warp.items()}, is_known)


def tensor_products(opcode: str, byte: float) -> float | None:
    """Return the products of float16 that an instruction is worth to tensor cores, per warp; one of bytes is ``byte``.

    None: a tensor core's instruction whose shape does not stand in its name, see :func:`described_products`. 0: not a
    tensor core's.
    """
    worth = 2.0 if "TF32" in opcode else 1.0
    if found := _WARP_PRODUCT.match(opcode):
        shape = _SHAPES.get(found[1])
        return None if shape is None else worth * shape
    if found := _BYTE_PRODUCT.match(opcode):
        shape = _SHAPES.get(found[1])
        return None if shape is None else byte * shape
    if found := _GROUP_PRODUCT.match(opcode):  # of the four warps of a warp group together
        m, n, k = map(int, found.groups())
        return worth * m * n * k / 4
    return None if re.match(r"^(\w*MMA)\b", opcode) else 0.0


def described_products(instruction: Instruction) -> float | None:
    """Return the products of float16 that an instruction of the fifth generation of tensor cores is worth, per program.

    Its shape stands in its descriptor (PTX ISA, tcgen05 instruction descriptor for .kind::f16 and .kind::tf32): bits 7
    to 9 are the type of A, 2 being TF32; bits 17 to 22 columns / 8; bits 24 to 28 rows / 16. The depth is 32 bytes.
    None: another instruction, or a descriptor that the code does not tell.
    """
    if not instruction.opcode.startswith("UTCHMMA") or instruction.descriptor is None:
        return None
    described = instruction.descriptor
    kind, columns, rows = described >> 7 & 7, 8 * (described >> 17 & 63), 16 * (described >> 24 & 31)
    depth, worth = (8, 2.0) if kind == 2 else (16, 1.0)
    return worth * rows * columns * depth


def shared_bytes(opcode: str) -> float:
    """Return the bytes of shared memory that an instruction moves, per lane."""
    name = opcode.split(".")[0]
    if name in ("LDSM", "STSM"):  # 8 × 8 matrices of two bytes: four a lane
        found = _MATRIX.search(opcode)
        return 4.0 * int(found[1]) if found else 4.0
    if name not in ("LDS", "STS", "ATOMS"):
        return 0.0
    return next((float(size) for part in opcode.split(".")[1:] if (size := _WIDTHS.get(part))), 4.0)


def occupancy(arch: int, registers: int, shared: int, num_warps: int) -> int:
    """Return how many warps of a kernel are resident on a multiprocessor at once.

    Args:
        arch: Compute capability.
        registers: Per thread.
        shared: Bytes of shared memory of a program.
        num_warps: Warps of a program.
    """
    rates = RATES[arch]
    per_warp = -(-registers * LANES // _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = rates.registers // (per_warp * num_warps)
    by_shared = rates.shared // (shared + _RESERVED)
    return min(by_registers, by_shared, rates.warps // num_warps) * num_warps
