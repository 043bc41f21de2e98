"""Decode a kernel: give every register a slot, and every instruction an action on slots."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tools.ptx.source import Instruction, Kernel, Operand

if TYPE_CHECKING:
    from tools.ptx.machine import Program

Array = np.ndarray
Action = Callable[["Program", Array | None], None]
Maker = Callable[["Decoder", Instruction], Action]

_BITS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "f32": 32, "b64": 64, "f64": 64, "u32": 32, "u16": 16, "u64": 64}
_ADDRESS = re.compile(r"\[\s*(%?\w+)\s*(?:\+\s*(-?\w+))?\s*\]$")
UNSIGNED = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
_SPECIAL = ("%tid.x", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z")
BRANCH, RETURN, BARRIER, ACQUIRE = "branch", "return", "barrier", "acquire"


@dataclass(frozen=True)
class Decoded:
    """An instruction, its guard's slot (None: none), its action, and its ``control`` if it branches, waits or ends."""

    instruction: Instruction
    guard: int | None
    action: Action
    control: str | None = None
    target: int = 0


class Decoder:
    """Decodes a kernel: every register and constant gets a slot, every instruction an action on slots.

    Args:
        kernel: The kernel to decode.
        makers: Functions that make an instruction's action, by the first part of its name; "": for all other names.
    """

    def __init__(self, kernel: Kernel, makers: Mapping[str, Maker]) -> None:
        self.kernel, self._makers = kernel, makers
        self.slots: dict[str, int] = {}
        self.constants: dict[tuple[int, int], int] = {}
        self.count = 0
        for name in (*_SPECIAL, *kernel.parameters, *kernel.registers):
            self.slots[name] = self._slot()
        self.code = [self._decode(each) for each in kernel.instructions]

    def template(self, arguments: dict[str, int]) -> list[Array | None]:
        """Return a new program's slots: those of constants and parameters are set, the others are None."""
        found: list[Array | None] = [None] * self.count
        threads = self.kernel.threads
        for (value, bits), slot in self.constants.items():
            found[slot] = np.full(threads, value != 0) if bits == 1 else np.full(threads, value, UNSIGNED[bits])
        for name, kind in self.kernel.parameters.items():
            found[self.slots[name]] = np.full(threads, arguments[name], UNSIGNED[_BITS[kind]])
        return found

    def _slot(self) -> int:
        self.count += 1
        return self.count - 1

    def _constant(self, value: int, bits: int) -> int:
        key = (value & (1 << bits) - 1, bits)
        if key not in self.constants:
            self.constants[key] = self._slot()
        return self.constants[key]

    def source(self, operand: Operand, bits: int) -> int:
        """Return the slot of a source operand; a constant has a slot of ``bits`` bits."""
        assert isinstance(operand, str), operand
        if operand in self.slots:
            return self.slots[operand]
        if operand == "global_smem":
            return self._constant(0, bits)
        if operand.startswith("0f"):
            return self._constant(int(operand[2:], 16), bits)
        return self._constant(int(operand.rstrip("U"), 0), bits)

    def address(self, operand: Operand) -> tuple[int, int]:
        """Return the slot of an address, and the constant offset that is added to it."""
        assert isinstance(operand, str), operand
        found = _ADDRESS.match(operand)
        if found is None:
            raise NotImplementedError(f"the address {operand} is not understood")
        return self.source(found[1], 32), int(found[2] or "0", 0)

    def _decode(self, instruction: Instruction) -> Decoded:
        guard = self.slots[instruction.guard] if instruction.guard else None
        name, parts = instruction.opcode.split(".")[0], instruction.opcode.split(".")
        if name == "bra":
            target = self.kernel.labels[str(instruction.operands[0])]
            return Decoded(instruction, guard, nothing, BRANCH, target)
        if name == "ret":
            return Decoded(instruction, guard, nothing, RETURN)
        if name in ("bar", "barrier") and parts[1] == "sync":
            return Decoded(instruction, guard, nothing, BARRIER)
        control = ACQUIRE if name == "ld" and "acquire" in parts else None
        make = self._makers.get(name, self._makers[""])
        try:
            return Decoded(instruction, guard, make(self, instruction), control)
        except (KeyError, NotImplementedError, ValueError) as error:
            raise NotImplementedError(f"{instruction}: {error!r}") from error


def nothing(program: Program, active: Array | None) -> None:
    pass


def bits_of(opcode: str) -> int:
    """Return how many bits an instruction's constants have, according to the last part of its name."""
    kind = opcode.split(".")[-1]
    if kind.endswith("x2"):
        return 64 if kind == "f32x2" else 32
    return 1 if kind == "pred" else 32 if kind == "f32" or not kind[-2:].isdigit() else int(kind.lstrip("busf"))


def names_of(operand: Operand) -> tuple[str, ...]:
    """Return the registers of an operand, one or several in braces."""
    return operand if isinstance(operand, tuple) else (operand,)
