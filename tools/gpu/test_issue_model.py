"""The model's arithmetic: what an instruction is worth, who is busiest, how many warps fit."""

from dataclasses import replace

import pytest

from lucid_deploy.plugins.hosts.triton.aot import ARCHITECTURES, SHARED_LIMITS
from tools.gpu.issue_model import (
    RATES,
    cycles,
    described_products,
    occupancy,
    shared_bytes,
    tensor_products,
)
from tools.gpu.machine_code import Instruction


def loop(**counts: int) -> list[Instruction]:
    names = [name.replace("_", ".") for name, count in counts.items() for _ in range(count)]
    return [Instruction(16 * index, name) for index, name in enumerate(names)]


@pytest.mark.parametrize(
    ("opcode", "worth"),
    [
        ("HMMA.16816.F32", 2048),
        ("HMMA.16816.F32.BF16", 2048),
        ("HMMA.1688.F32.TF32", 2048),  # half the depth at half the rate
        ("HGMMA.64x64x16.F32", 64 * 64 * 16 / 4),
        ("HGMMA.64x128x8.F32.TF32", 64 * 128 * 8 / 4 * 2),
        ("IMMA.16832.S8.S8.SAT", 16 * 8 * 32 * 0.25),
        ("IMMA.99", None),
        ("UTCHMMA", None),
        ("HMMA.99", None),
        ("FFMA", 0),
        ("HADD2.F32", 0),
    ],
)
def test_products_of_tensor_cores(opcode: str, worth: float | None) -> None:
    assert tensor_products(opcode, byte=0.25) == worth


@pytest.mark.parametrize(
    ("opcode", "moved"),
    [("LDS", 4), ("LDS.128", 16), ("STS.64", 8), ("LDS.U16", 2), ("LDSM.16.M88.4", 16), ("LDSM.16.MT88.2", 8),
     ("LDG.E.128", 0), ("FADD", 0)],
)  # fmt: skip
def test_shared_memory(opcode: str, moved: float) -> None:
    assert shared_bytes(opcode) == moved


def test_the_busiest_unit_decides() -> None:
    """On 8.0: 16 special functions, 64 additions, 4 instructions, 1024 products a cycle."""
    special = cycles(loop(MUFU_EX2=8, FADD=4), 80, num_warps=4)
    assert special.units["special"] == 4 * 8 * 32 / 16 == special.total and special.bound_by == "special"
    assert special.units["float32"] == 4 * 4 * 32 / 64 and special.units["issue"] == 4 * 12 / 4
    tensor = cycles(loop(HMMA_16816_F32=10, LDS_128=1), 80, num_warps=8)
    assert tensor.bound_by == "tensor" and tensor.total == 8 * 10 * 2048 / 1024
    assert tensor.units["shared"] == 8 * 32 * 16 / 128
    assert cycles(loop(IMMA_16832_S8_S8=10), 80, num_warps=4).units["tensor"] == 4 * 10 * 4096 / 2048
    assert cycles(loop(IMMA_16832_S8_S8=10), 120, num_warps=4).units["tensor"] == 4 * 10 * 4096 / 1024
    assert cycles(loop(BAR_SYNC=9), 80, 4).bound_by == "issue"
    exchanges = cycles(loop(SHFL_BFLY=8), 80, num_warps=4).units
    assert {name for name, taken in exchanges.items() if taken} == {"issue"}, "as the module says"
    assert not cycles(loop(UTCHMMA=1), 100, 4).is_known and tensor.is_known


@pytest.mark.parametrize(
    ("descriptor", "worth"),
    [
        (1 << 4 | 1 << 7 | 1 << 10 | 64 // 8 << 17 | 64 // 16 << 24, 64 * 64 * 16),  # bfloat16
        (1 << 4 | 128 // 8 << 17 | 128 // 16 << 24, 128 * 128 * 16),  # float16
        (1 << 4 | 2 << 7 | 2 << 10 | 1 << 16 | 32 // 8 << 17 | 64 // 16 << 24, 64 * 32 * 8 * 2),  # TF32, B transposed
    ],
)
def test_products_of_tensor_cores_that_read_a_descriptor(descriptor: int, worth: float) -> None:
    """One thread starts the product of all warps: 4096 products a cycle on 10.0."""
    product = Instruction(0, "UTCHMMA", "gdesc[UR4],gdesc[UR6],tmem[UR8],tmem[UR10],idesc[UR11],UPT", "", descriptor)
    assert described_products(product) == worth
    assert described_products(replace(product, descriptor=None)) is None
    assert described_products(replace(product, opcode="UTCQMMA")) is None
    taken = cycles([product], 100, num_warps=8)
    assert taken.is_known and taken.units["tensor"] == pytest.approx(worth / 4096)


def test_a_loop_of_nothing() -> None:
    assert cycles([], 90, 4).total == 0


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "resident"),
    [
        (90, 255, 0, 4, 8),  # two programs of 32,768 registers
        (90, 128, 0, 4, 16),
        (86, 32, 0, 4, 48),  # as many as there are places
        (80, 32, 0, 8, 64),
        (80, 64, 81_920, 4, 8),  # two programs of 81 KiB in 164
        (86, 255, 100_000, 4, 4),
    ],
)  # by hand, from the limits in the CUDA C++ Programming Guide
def test_occupancy(arch: int, registers: int, shared: int, warps: int, resident: int) -> None:
    assert occupancy(arch, registers, shared, warps) == resident


def test_every_architecture_has_rates() -> None:
    assert set(RATES) == set(ARCHITECTURES)
    for arch, limit in SHARED_LIMITS.items():
        assert limit == RATES[arch].shared - 1024, "a program may have all but what the driver takes"
