"""Actions of the instructions of single threads and of warps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from tools.ptx import tensor_cores
from tools.ptx.arithmetic import function_of
from tools.ptx.decoding import UNSIGNED, Action, Array, Decoder, Maker, bits_of, names_of
from tools.ptx.memory import Fault, numbers_of
from tools.ptx.source import Instruction

if TYPE_CHECKING:
    from tools.ptx.machine import Program


def _arithmetic(decoder: Decoder, instruction: Instruction) -> Action:
    function, bits = function_of(instruction.opcode), bits_of(instruction.opcode)
    target, *sources = instruction.operands
    name = instruction.opcode.split(".")[0]
    widths = [bits] * len(sources)
    if name in ("shl", "shr"):
        widths[1] = 32
    elif name == "bfe":
        widths[1:] = [32, 32]
    elif name == "mad" and ".wide" in instruction.opcode:
        widths[2] = 2 * bits
    slots = [decoder.source(each, width) for each, width in zip(sources, widths, strict=True)]
    place = decoder.slots[str(target)]

    def run(program: Program, active: Array | None) -> None:
        program.put(place, function(*[program.get(slot) for slot in slots]), active)

    return run


def _move(decoder: Decoder, instruction: Instruction) -> Action:
    target, source = instruction.operands
    bits = bits_of(instruction.opcode)
    if isinstance(target, tuple):
        places = [None if each == "_" else decoder.slots[each] for each in target]
        part, slot = bits // len(target), decoder.source(source, bits)

        def split(program: Program, active: Array | None) -> None:
            parts = program.get(slot).view(UNSIGNED[part]).reshape(-1, len(places))
            for i, place in enumerate(places):
                if place is not None:
                    program.put(place, np.ascontiguousarray(parts[:, i]), active)

        return split
    place = decoder.slots[str(target)]
    if isinstance(source, tuple):
        slots = [decoder.source(each, bits // len(source)) for each in source]

        def join(program: Program, active: Array | None) -> None:
            parts = np.stack([program.peek_or_nothing(slot, bits // len(slots)) for slot in slots], axis=1)
            program.put(place, parts.view(UNSIGNED[bits])[:, 0], active)

        return join
    only = decoder.source(source, bits)

    def move(program: Program, active: Array | None) -> None:
        program.put(place, program.peek(only), active)
        if only in program.unfinished:
            program.unfinished.add(place)
        elif place in program.unfinished:
            program.unfinished.remove(place)

    return move


def _parts_of_access(opcode: str) -> tuple[str, int, int]:
    """Return the memory that a load or store accesses, how many numbers per thread, and bytes per number."""
    parts = opcode.split(".")
    if set(parts) & {"volatile", "weak", "mmio"}:
        raise NotImplementedError(opcode)
    count = int(next((part[1:] for part in parts if re.fullmatch(r"v\d", part)), "1"))
    place = next(part for part in parts if part.split("::")[0] in ("param", "shared", "global"))
    return place.split("::")[0], count, int(parts[-1].lstrip("busf")) // 8


def _load(decoder: Decoder, instruction: Instruction) -> Action:
    place, count, size = _parts_of_access(instruction.opcode)
    places = [decoder.slots[each] for each in names_of(instruction.operands[0])]
    slot, offset = decoder.address(instruction.operands[1])
    if place == "param":
        return lambda program, active: program.put(places[0], program.get(slot), active)

    def run(program: Program, active: Array | None) -> None:
        threads = numbers_of(program.threads, active)
        if "acquire" in instruction.opcode:
            found = program.acquire(program.addresses(slot, offset, threads))
        elif place == "shared":
            found = program.shared.read(program.addresses(slot, offset, threads), size, count, threads)
        else:
            found = program.read_global(program.addresses(slot, offset, threads), size, count)
        for i, each in enumerate(places):
            program.put_some(each, found[:, i], threads)

    return run


def _store(decoder: Decoder, instruction: Instruction) -> Action:
    place, _, size = _parts_of_access(instruction.opcode)
    slot, offset = decoder.address(instruction.operands[0])
    slots = [decoder.source(each, 8 * size) for each in names_of(instruction.operands[1])]

    def run(program: Program, active: Array | None) -> None:
        threads = numbers_of(program.threads, active)
        values = np.stack([program.get(each)[threads].astype(UNSIGNED[8 * size]) for each in slots], axis=1)
        addresses = program.addresses(slot, offset, threads)
        if place == "shared":
            program.shared.write(addresses, values, threads)
        else:
            program.write_global(addresses, values, threads)

    return run


def _atomic(decoder: Decoder, instruction: Instruction) -> Action:
    parts = instruction.opcode.split(".")
    if "add" not in parts or parts[-1] != "u32":
        raise NotImplementedError(instruction.opcode)
    *targets, where, value = instruction.operands
    slot, offset = decoder.address(where)
    value_slot = decoder.source(value, 32)

    def run(program: Program, active: Array | None) -> None:
        threads = numbers_of(program.threads, active)
        values = program.get(value_slot)[threads]
        addresses = program.addresses(slot, offset, threads)
        found = program.add(addresses, values, threads, "release" in parts, "acquire" in parts)
        for target in targets:
            program.put_some(decoder.slots[str(target)], found, threads)

    return run


def _copy(decoder: Decoder, instruction: Instruction) -> Action:
    """``cp.async``: bytes of the destination beyond the given source size become 0."""
    if instruction.opcode.endswith("commit_group"):
        return lambda program, active: program.commit(active)
    if "wait" in instruction.opcode:
        left = int(str(instruction.operands[0])) if instruction.operands else 0
        return lambda program, active: program.wait(left, active)
    target, source, size, *given = instruction.operands
    slot, offset = decoder.address(target)
    from_slot, from_offset = decoder.address(source)
    bytes_ = int(str(size), 0)
    given_slot = decoder.source(given[0], 32) if given else None

    def run(program: Program, active: Array | None) -> None:
        threads = numbers_of(program.threads, active)
        there = np.full(len(threads), bytes_) if given_slot is None else program.get(given_slot)[threads].astype(int)
        if not np.isin(there, (0, bytes_)).all():
            raise NotImplementedError("cp.async whose source size is neither 0 nor the full size")
        found = np.zeros((len(threads), bytes_), np.uint8)
        full = there > 0
        if full.any():
            addresses = program.addresses(from_slot, from_offset, threads[full])
            found[full] = program.read_global(addresses, min(bytes_, 8), max(1, bytes_ // 8), bytes_).view(np.uint8)
        program.copy(program.addresses(slot, offset, threads), found, threads)

    return run


def _shuffle(decoder: Decoder, instruction: Instruction) -> Action:
    mode = instruction.opcode.split(".")[2]
    target, value, lane, clamp, _ = instruction.operands
    name, _, within_name = str(target).partition("|")
    place, within_place = decoder.slots[name], decoder.slots[within_name] if within_name else None
    slots = [decoder.source(each, 32) for each in (value, lane, clamp)]

    def run(program: Program, active: Array | None) -> None:
        if active is not None:
            raise Fault("not all threads take part in an exchange")
        found, within = tensor_cores.exchanged(mode, *(program.get(slot) for slot in slots))
        program.put(place, found, None)
        if within_place is not None:
            program.put(within_place, within, None)

    return run


def _reduction(decoder: Decoder, instruction: Instruction) -> Action:
    """``redux.sync.max``: the largest number of a warp."""
    if not instruction.opcode.startswith("redux.sync.max.") or not instruction.opcode.endswith("f32"):
        raise NotImplementedError(instruction.opcode)
    target, value, _ = instruction.operands
    place, slot = decoder.slots[str(target)], decoder.source(value, 32)

    def run(program: Program, active: Array | None) -> None:
        if active is not None:
            raise Fault("not all threads take part in a reduction")
        largest = np.fmax.reduce(program.get(slot).view(np.float32).reshape(-1, tensor_cores.LANES), axis=1)
        program.put(place, np.repeat(largest, tensor_cores.LANES).view(np.uint32), None)

    return run


def _product(decoder: Decoder, instruction: Instruction) -> Action:
    shape, *_, kind, _, _ = instruction.opcode.split(".")[3:]
    is_bytes = instruction.opcode.endswith("m16n8k32.row.col.satfinite.s32.s8.s8.s32")
    expected = {"f16": "m16n8k16", "bf16": "m16n8k16", "tf32": "m16n8k8"}
    is_float = expected.get(kind) == shape and instruction.opcode.endswith(f".row.col.f32.{kind}.{kind}.f32")
    if not is_float and not is_bytes:
        raise NotImplementedError(instruction.opcode)
    places, *sources = ([decoder.source(name, 32) for name in names_of(each)] for each in instruction.operands)

    def run(program: Program, active: Array | None) -> None:
        if active is not None:
            raise Fault("not all threads take part in an MMA")
        left, right, total = ([program.get(slot) for slot in slots] for slots in sources)
        if is_bytes:
            sums = tensor_cores.multiply_bytes(left, right, total)
        else:
            sums = tensor_cores.multiply(kind, left, right, total)
        for place, found in zip(places, sums, strict=True):
            program.put(place, found, None)

    return run


def _matrices(decoder: Decoder, instruction: Instruction) -> Action:
    """``ldmatrix`` and ``stmatrix``."""
    parts = instruction.opcode.split(".")
    loads, transposed = parts[0] == "ldmatrix", "trans" in parts
    where, registers = instruction.operands[:: -1 if loads else 1]
    count = int(next(part[1:] for part in parts if re.fullmatch(r"x\d", part)))
    if parts[-1] != "b16" or "m8n8" not in parts:
        raise NotImplementedError(instruction.opcode)
    slot, offset = decoder.address(where)
    places = [decoder.source(name, 32) for name in names_of(registers)]

    def run(program: Program, active: Array | None) -> None:
        if active is not None:
            raise Fault("not all threads take part in moving matrices")
        threads = tensor_cores.rows_of_matrices(program.get(slot), count)
        flat = threads.reshape(-1)
        addresses = program.addresses(slot, offset, flat)
        if loads:
            rows = program.shared.read(addresses, 2, 8, flat).reshape(*threads.shape, 8)
            for place, found in zip(places, tensor_cores.dealt(rows, transposed), strict=True):
                program.put(place, found, None)
        else:
            rows = tensor_cores.gathered([program.get(place) for place in places], transposed)
            program.shared.write(addresses, rows.reshape(-1, 8), flat)

    return run


def _warp_barrier(decoder: Decoder, instruction: Instruction) -> Action:
    parts = instruction.opcode.split(".")
    if parts[1:3] != ["warp", "sync"]:
        raise NotImplementedError(instruction.opcode)
    return lambda program, active: program.pass_warp_barrier(active)


MAKERS: dict[str, Maker] = {
    "": _arithmetic,
    "mov": _move,
    "ld": _load,
    "st": _store,
    "atom": _atomic,
    "red": _atomic,
    "cp": _copy,
    "shfl": _shuffle,
    "redux": _reduction,
    "mma": _product,
    "ldmatrix": _matrices,
    "stmatrix": _matrices,
    "bar": _warp_barrier,
}
