"""Read compiled kernels with the disassemblers of Triton's package: instructions, loops and resources."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lucid_deploy.errors import LucidError, missing_extra
from tools.gpu.natural_loops import Flow, natural_loops

BYTES = 16  # of an instruction, from compute capability 7.0 on
_BRANCHES = {"BRA", "JMP"}
_CALLS = {"CALL"}  # ptxas also leaves loops by calls that never return
_ENDS = {"EXIT", "RET"}
_ALWAYS = re.compile(r"^0x[0-9a-f]+$")  # a branch's operands if they name no predicate
_TARGET = re.compile(r"\b0x[0-9a-f]+$")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_COMPUTES = re.compile(r"^([HIQD]MMA|[HIQ]GMMA|UTC\w*MMA|MUFU|[FD]FMA|FFMA2|HFMA2)\b")


@dataclass(frozen=True)
class Instruction:
    """One instruction of a disassembled function."""

    address: int  # of its first byte within the function
    opcode: str  # with its modifiers, such as HMMA.16816.F32
    operands: str = ""  # as the disassembler writes them
    predicate: str = ""  # such as @!P0; empty: always

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int | None:
        """The constant address to which a branch or a call goes; None for a variable one and for other instructions."""
        found = _TARGET.search(self.operands) if self.name in _BRANCHES | _CALLS else None
        return int(found[0], 16) if found else None

    @property
    def goes_on(self) -> bool:
        """Whether execution may go on with the instruction after this one."""
        is_branch = self.target is not None and self.name not in _CALLS
        leaves = self.name in _ENDS or (is_branch and _ALWAYS.match(self.operands) is not None)
        return not leaves or self.predicate != ""


@dataclass(frozen=True)
class Code:
    """One compiled function."""

    instructions: tuple[Instruction, ...]  # in the order of addresses
    registers: int  # per thread
    stack: int  # bytes of local memory per thread, into which registers are spilled

    @property
    def spills(self) -> int:
        """Loads from and stores to local memory."""
        return spills(self.instructions)

    @property
    def flow(self) -> list[Flow]:
        """Where each instruction leads; a call leads to its target and, as it returns, to the next instruction."""
        size = BYTES * len(self.instructions)
        targets = [each.target for each in self.instructions]
        return [
            Flow(None if target is None or target >= size else target // BYTES, each.goes_on)
            for each, target in zip(self.instructions, targets, strict=True)
        ]

    @cached_property
    def loops(self) -> tuple[tuple[Instruction, ...], ...]:
        """The instructions of each loop, in the order of addresses."""
        return tuple(tuple(self.instructions[i] for i in loop) for loop in natural_loops(self.flow))

    @cached_property
    def hot_loop(self) -> tuple[Instruction, ...]:
        """The loop with the most arithmetic, without an inner loop that has arithmetic; () if no loop has any.

        The hot loop may contain loops that wait or reduce a few numbers.
        """
        computing = [loop for loop in self.loops if _work(loop)]
        innermost = [
            loop for loop in computing if not any(other is not loop and _holds(loop, other) for other in computing)
        ]
        return max(innermost, key=_work, default=())

    @property
    def enclosing(self) -> tuple[Instruction, ...]:
        """The instructions of the largest loop around the hot loop, without the hot loop's; () if there is none."""
        hot = self.hot_loop
        around = [loop for loop in self.loops if hot and loop is not hot and _holds(loop, hot)]
        inside = {each.address for each in hot}
        return tuple(each for each in max(around, key=len, default=()) if each.address not in inside)


def spills(instructions: Sequence[Instruction]) -> int:
    """Return how many of these read or write local memory."""
    return sum(each.name in ("LDL", "STL") for each in instructions)


def _work(loop: Sequence[Instruction]) -> int:
    return sum(_COMPUTES.match(each.opcode) is not None for each in loop)


def _holds(loop: Sequence[Instruction], other: Sequence[Instruction]) -> bool:
    return {each.address for each in loop} >= {each.address for each in other}


def disassemble(image: bytes, entry: str) -> Code:
    """Disassemble a function of a compiled module.

    Args:
        image: Machine code, an ELF file as Triton compiles it.
        entry: The kernel's name; the module's other functions are the compiler's own, which the kernel calls.

    Raises:
        LucidError: Triton is not installed, or its disassemblers cannot read the module.
    """
    with tempfile.TemporaryDirectory(prefix="lucid-cubin-") as folder:
        path = Path(folder) / "module.cubin"
        path.write_bytes(image)
        listing = _run("nvdisasm", "-c", "-json", str(path))
        usage = _run("cuobjdump", "-res-usage", str(path))
    try:
        [function] = [each for each in json.loads(listing)[1] if each["function-name"] == entry]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise LucidError(f"nvdisasm's listing has an unexpected format ({error}).") from error
    used = _USAGE.search(usage, max(usage.find(f"Function {entry}:"), 0))
    if used is None:
        raise LucidError(f"cuobjdump does not list the registers of {entry}.")
    instructions = tuple(
        Instruction(index * BYTES, each["opcode"], each.get("operands", ""), each.get("predicate", ""))
        for index, each in enumerate(function["sass-instructions"])
    )
    return Code(instructions, registers=int(used[1]), stack=int(used[2]))


def _run(tool: str, *arguments: str) -> str:
    result = subprocess.run([_tool(tool), *arguments], capture_output=True, text=True, check=False)
    if result.returncode:
        raise LucidError(f"{tool} failed: {(result.stderr or result.stdout).strip()[-300:]}")
    return result.stdout


def _tool(name: str) -> str:
    try:
        import triton
    except ModuleNotFoundError:
        raise missing_extra("triton", "kernels", "read compiled kernels") from None
    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name)
