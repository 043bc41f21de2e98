"""Parse the PTX that Triton's compiler writes: a kernel's parameters, registers and instructions."""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(?:\.ptr\s+\.global\s+\.align\s+\d+\s+)?(\w+)")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%?\w+)(?:<(\d+)>)?((?:\s*,\s*%?\w+)*)\s*$")
_GUARD = re.compile(r"@(!?)(%?\w+)\s+(.*)", re.DOTALL)
_LABEL = re.compile(r"\s*(\$?[A-Za-z_]\w*):(?!:)")
_THREADS = re.compile(r"\.(?:reqntid|maxntid)\s+(\d+)")

Operand = str | tuple[str, ...]


@dataclass(frozen=True)
class Instruction:
    """One instruction."""

    opcode: str  # the name with all modifiers, such as add.s32
    operands: tuple[Operand, ...]  # as they are written; the elements of {…} as a tuple
    guard: str | None  # the predicate, such as %p1; None: always runs
    negated: bool  # whether the instruction runs if the guard is false
    line: int  # line number

    def __str__(self) -> str:
        guard = f"@{'!' * self.negated}{self.guard} " if self.guard else ""
        operands = ["{" + ", ".join(each) + "}" if isinstance(each, tuple) else each for each in self.operands]
        return f"line {self.line}: {guard}{self.opcode} {', '.join(operands)}"


@dataclass(frozen=True)
class Kernel:
    """One kernel."""

    name: str  # of its entry
    parameters: dict[str, str]  # types by name, in order
    threads: int  # of a program
    registers: dict[str, str]  # types by name
    instructions: tuple[Instruction, ...]  # in order
    labels: dict[str, int]  # index of the instruction after each label


def read_kernel(text: str) -> Kernel:
    """Return the only kernel of a module.

    Raises:
        ValueError: The module does not have exactly one kernel, or is not understood.
    """
    text = _COMMENT.sub(lambda found: "\n" * found[0].count("\n"), text)
    entries = list(re.finditer(r"\.visible\s+\.entry\s+(\w+)\s*\(([^)]*)\)([^{]*)\{", text))
    if len(entries) != 1:
        raise ValueError(f"the module has {len(entries)} kernels instead of 1")
    entry = entries[0]
    threads = _THREADS.search(entry[3])
    if threads is None:
        raise ValueError(f"{entry[1]} does not say how many threads a program has")
    registers: dict[str, str] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for statement, line, block in _statements(text, entry.end()):
        while found := _LABEL.match(statement):
            labels[_named(found[1], block)] = len(instructions)
            statement = statement[found.end() :]
        statement = statement.strip()
        if not statement or statement.startswith((".loc", ".pragma", ".file")):
            continue
        if statement.startswith(".reg"):
            registers |= _registers(statement)
        else:
            instructions.append(_instruction(statement, line, block))
    parameters = {name: kind for kind, name in _PARAMETER.findall(entry[2])}
    return Kernel(entry[1], parameters, int(threads[1]), registers, tuple(instructions), labels)


def _statements(text: str, start: int) -> list[tuple[str, int, int]]:
    """Return the statements of a body, the line of each, and the number of the innermost block around it."""
    found, depth, first = [], 1, start
    blocks, count = [0], 0
    ends = [i for i, character in enumerate(text) if character == "\n"]
    operand = False  # inside braces that hold operands
    for match in re.compile(r"[{};]").finditer(text, start):
        i, character = match.start(), match[0]
        if character == "{":
            before = text[first:i].strip()
            operand = before != "" and not before.endswith(":")
            if not operand:
                if before:  # a label before a block
                    found.append((text[first:i], bisect.bisect_left(ends, i) + 1, blocks[-1]))
                depth, first = depth + 1, i + 1
                count += 1
                blocks.append(count)
        elif character == "}":
            if not operand:
                if text[first:i].strip():  # a label at the end of a block
                    found.append((text[first:i], bisect.bisect_left(ends, i) + 1, blocks[-1]))
                depth, first = depth - 1, i + 1
                blocks.pop()
            operand = False
            if depth == 0:
                return found
        elif character == ";":
            # the line of the statement's first word, not of the blanks before
            begin = first + len(text[first:i]) - len(text[first:i].lstrip())
            found.append((text[first:i], bisect.bisect_left(ends, begin) + 1, blocks[-1]))
            first = i + 1
    raise ValueError("the kernel has no end")


def _registers(statement: str) -> dict[str, str]:
    found = _REGISTERS.match(statement)
    if found is None:
        raise ValueError(f"the declaration of registers is not understood: {statement}")
    kind, name, count, more = found.groups()
    if count:
        return {f"{name}{i}": kind for i in range(int(count))}
    return dict.fromkeys([name, *(each.strip() for each in more.split(",") if each.strip())], kind)


def _named(label: str, block: int) -> str:
    """Return a label's unique name: a block inside {…} may repeat the labels of other blocks."""
    return label if label.startswith("$") else f"{label}@{block}"


def _instruction(statement: str, line: int, block: int) -> Instruction:
    guard = _GUARD.match(statement)
    opcode, _, rest = (guard[3] if guard else statement).strip().partition(" ")
    if "\t" in opcode:
        opcode, _, more = opcode.partition("\t")
        rest = f"{more} {rest}"
    named = guard and guard[2]
    operands = _operands(rest)
    if opcode.startswith("bra"):
        operands = tuple(_named(str(each), block) for each in operands)
    return Instruction(opcode, operands, named or None, bool(guard and guard[1]), line)


def _operands(text: str) -> tuple[Operand, ...]:
    found: list[Operand] = []
    for braces, plain in re.findall(r"\{([^}]*)\}|([^,{}]+)", text):
        if braces:
            found.append(tuple(each.strip() for each in braces.split(",")))
        elif plain.strip():
            found.append(plain.strip())
    return tuple(found)
