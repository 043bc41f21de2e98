"""Loops, spills and resources are found in listings, and the listings agree with another disassembler's."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from lucid_deploy.plugins.hosts.triton.aot import compile_kernels
from lucid_deploy.plugins.hosts.triton.compiled_kernel import CompiledKernel
from lucid_deploy.plugins.shared.plan import Variant
from tools.gpu.machine_code import (
    BYTES,
    Code,
    Instruction,
    disassemble,
    spills,
)

pytest.importorskip("triton", reason='compiled kernels are read with Triton: pip install -e ".[kernels]"')

import triton


def code(text: str) -> Code:
    """Return the code of a listing with one instruction a line.

    ``BRA 3`` and ``CALL 3`` go to instruction 3, counted from 0, if a predicate holds; ``JMP 3`` always does.
    """
    jumps = ("BRA", "CALL")
    lines = [line.split(maxsplit=1) for line in text.strip().splitlines()]
    return Code(
        tuple(
            Instruction(
                index * BYTES,
                opcode,
                f"{hex(int(rest[0]) * BYTES)}" if opcode in (*jumps, "JMP") else " ".join(rest),
                "@P0" if opcode in jumps else "",
            )
            for index, (opcode, *rest) in enumerate(lines)
        ),
        registers=128,
        stack=0,
    )


def counted(found: Code) -> Counter[str]:
    return Counter(each.name for each in found.hot_loop)


WAITING_INSIDE = """
S2R
LDL
LDG
HMMA.16816.F32
HMMA.16816.F32
LD
BRA 5
LDL.LU
STL
BRA 2
MUFU.EX2
FFMA
BRA 10
BRA 1
EXIT
BRA 15
"""


def test_the_hot_loop_has_the_most_arithmetic_and_no_inner_loop_with_arithmetic() -> None:
    """A waiting loop may lie in the hot loop; the outer and the smaller loop are not hot; ``BRA 15`` is no loop."""
    found = code(WAITING_INSIDE)
    assert [(loop[0].address // BYTES, loop[-1].address // BYTES) for loop in found.loops] == [
        (5, 6),
        (2, 9),
        (10, 12),
        (1, 13),
    ]
    assert [each.address // BYTES for each in found.hot_loop] == list(range(2, 10))
    assert found.spills == 3 and spills(found.hot_loop) == 2
    assert counted(found)["HMMA"] == 2
    assert [each.address // BYTES for each in found.enclosing] == [1, 10, 11, 12, 13]
    assert spills(found.enclosing) == 1


LEFT_BY_A_CALL = """
S2R
LDL
HMMA.16816.F32
CALL 5
JMP 2
STL
BRA 1
EXIT
"""


def test_a_loop_that_a_call_leaves_lies_within_the_loop_around_it() -> None:
    """For 8.0, ptxas writes loops in this way: the call never returns, and the loop's last branch follows it."""
    found = code(LEFT_BY_A_CALL)
    assert [each.address // BYTES for each in found.hot_loop] == [2, 3, 4]
    assert [each.address // BYTES for each in found.enclosing] == [1, 5, 6] and spills(found.enclosing) == 2


def test_a_loop_does_not_include_the_function_that_it_calls() -> None:
    found = code("S2R\nHMMA.16816.F32\nCALL 5\nBRA 1\nEXIT\nLDL\nRET")
    assert [each.address // BYTES for each in found.hot_loop] == [1, 2, 3] and found.enclosing == ()


def test_code_without_arithmetic_in_a_loop_has_no_hot_loop() -> None:
    straight = code("MOV\nHMMA.16816.F32\nBRA 3\nEXIT")
    assert straight.hot_loop == straight.enclosing == ()
    assert code("MOV\nLDG\nBRA 1\nEXIT").hot_loop == (), "the loop computes nothing"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> CompiledKernel:
    def is_small(variant: Variant) -> bool:
        return variant.name == "precondition_float16_d32_u8"

    [compiled] = compile_kernels([80], ptx=False, select=is_small, cache=tmp_path_factory.mktemp("kernels"))
    return compiled


def test_a_kernel_is_listed_as_by_the_other_disassembler(kernel: CompiledKernel, tmp_path: Path) -> None:
    path = tmp_path / "kernel.cubin"
    path.write_bytes(kernel.image)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listing = subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=True).stdout
    wanted = re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([\w.]+)", listing, re.M)
    found = disassemble(kernel.image, kernel.entry)
    assert [(each.address, each.opcode) for each in found.instructions] == [
        (int(address, 16), opcode) for address, opcode in wanted
    ]
    assert 32 <= found.registers <= 255
    loop = counted(found)
    assert loop["HMMA"] >= 8 and loop["MUFU"] >= 8 and 0 < len(found.hot_loop) < len(found.instructions) / 2
