"""Actions of the instructions of warp groups (``wgmma``) and tensor memory (``tcgen05``), and of their barriers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tools.ptx import tensor_cores, tensor_memory, warp_groups
from tools.ptx.decoding import Action, Array, Decoder, Maker, names_of, nothing
from tools.ptx.memory import Fault, numbers_of
from tools.ptx.source import Instruction

if TYPE_CHECKING:
    from tools.ptx.machine import Program


def _group_product(decoder: Decoder, instruction: Instruction) -> Action:
    """``wgmma``."""
    step = instruction.opcode.split(".")[1]
    if step == "fence":
        return nothing
    if step == "commit_group":
        return lambda program, active: program.commit_products()
    if step == "wait_group":
        left = int(str(instruction.operands[0]))
        return lambda program, active: program.wait_for_products(left)
    shape = warp_groups.shape_of(instruction.opcode)
    sums, left, right, adds, *scales = instruction.operands
    if scales[:2] != ["1", "1"]:
        raise NotImplementedError(instruction.opcode)
    transposed = [each == "1" for each in scales[2:]]  # of the factors in shared memory
    places = [decoder.source(name, 32) for name in names_of(sums)]
    left_slots = [decoder.source(name, 64) for name in names_of(left)]
    right_slot, adds_slot = decoder.source(right, 64), decoder.source(adds, 1)

    def factor(program: Program, slot: int, outer: int, outer_first: bool) -> Array:
        descriptors = program.get(slot).reshape(-1, warp_groups.WARPS * tensor_cores.LANES)
        if (descriptors != descriptors[:, :1]).any():
            raise Fault("the threads of a warp group have different descriptors")
        found = []
        for descriptor in descriptors[:, 0].tolist():
            at = warp_groups.places(descriptor, outer, shape.inner, shape.element, outer_first)
            found.append(warp_groups.numbers_at(program.use(at, shape.element), shape.kind))
        return np.stack(found)

    def run(program: Program, active: Array | None) -> None:
        if active is not None:
            raise Fault("not all threads take part in an MMA")
        if isinstance(left, tuple):
            a = warp_groups.left_in_registers([program.get(slot) for slot in left_slots], shape)
        else:
            a = factor(program, left_slots[0], warp_groups.ROWS, bool(transposed) and transposed[0])
        b = factor(program, right_slot, shape.columns, bool(transposed) and transposed[-1])
        goes_on = program.get(adds_slot)
        if goes_on.any() != goes_on.all():
            raise Fault("threads differ in whether an MMA adds to its accumulators")
        total = [program.peek(place) for place in places] if goes_on.all() else None
        for place, found in zip(places, warp_groups.add(a, b, total), strict=True):
            program.put(place, found, None)
        program.unfinished.update(places)

    return run


def _fence(decoder: Decoder, instruction: Instruction) -> Action:
    if instruction.opcode != "fence.proxy.async.shared::cta":
        raise NotImplementedError(instruction.opcode)

    def run(program: Program, active: Array | None) -> None:
        program.shared.fences += 1

    return run


def _elect(decoder: Decoder, instruction: Instruction) -> Action:
    """``elect.sync``: choose one thread of each warp."""
    name, _, chosen = str(instruction.operands[0]).partition("|")
    place, chosen_place = decoder.slots[name], decoder.slots[chosen]

    def run(program: Program, active: Array | None) -> None:
        first = np.arange(program.threads) % tensor_cores.LANES == 0
        if active is not None and (active != active[np.arange(program.threads) // 32 * 32]).any():
            raise Fault("elect.sync runs with only a part of a warp active")
        program.put(place, np.zeros(program.threads, np.uint32), active)
        program.put(chosen_place, first, active)

    return run


def _barrier_of_products(decoder: Decoder, instruction: Instruction) -> Action:
    """``mbarrier``."""
    step = instruction.opcode.split(".")[1]
    where = instruction.operands[1 if step == "try_wait" else 0]
    slot, offset = decoder.address(where)
    if step == "try_wait":
        place, parity = decoder.slots[str(instruction.operands[0])], decoder.source(instruction.operands[2], 32)

        def wait(program: Program, active: Array | None) -> None:
            threads = numbers_of(program.threads, active)
            barrier = _only(program.addresses(slot, offset, threads))
            by_all = len(threads) == program.threads
            ended = program.tensor.has_ended(barrier, _only(program.get(parity)[threads]), by_all)
            program.put(place, np.full(program.threads, ended), active)

        return wait
    count = int(str(instruction.operands[1])) if step == "init" else 0

    def run(program: Program, active: Array | None) -> None:
        barrier = _only(program.addresses(slot, offset, numbers_of(program.threads, active)))
        if step == "init":
            program.tensor.make_barrier(barrier, count)
        else:
            program.tensor.end_barrier(barrier)

    if step not in ("init", "inval"):
        raise NotImplementedError(instruction.opcode)
    return run


def _only(values: Array) -> int:
    if (values != values[0]).any():
        raise Fault("threads differ in an operand that must be the same for all")
    return int(values[0])


def _tensor_memory(decoder: Decoder, instruction: Instruction) -> Action:
    """``tcgen05``."""
    parts, operands = instruction.opcode.split("."), instruction.operands
    step = parts[1]
    if step == "relinquish_alloc_permit":
        return nothing
    if step == "wait::ld":  # Triton uses loads before it (Triton issue 9635); machine code waits for a load at each use
        return nothing
    if step == "wait::st":
        return lambda program, active: program.tensor.wait_for_stores()
    if step in ("alloc", "dealloc"):
        columns = int(str(operands[1]))
        if step == "dealloc":
            return lambda program, active: program.tensor.free(columns)
        slot, offset = decoder.address(operands[0])

        def allocate(program: Program, active: Array | None) -> None:
            one = numbers_of(program.threads, active)[:1]
            address = np.array([[program.tensor.allocate(columns)]], np.uint32)
            program.shared.write(program.addresses(slot, offset, one), address, one)

        return allocate
    if step == "commit":
        at, more = decoder.address(operands[0])

        def commit(program: Program, active: Array | None) -> None:
            program.tensor.commit(_only(program.addresses(at, more, numbers_of(program.threads, active))))

        return commit
    if step == "mma":
        return _tensor_product(decoder, instruction)
    return _tensor_access(decoder, instruction)


def _tensor_access(decoder: Decoder, instruction: Instruction) -> Action:
    """``tcgen05.ld`` and ``tcgen05.st``."""
    parts, operands = instruction.opcode.split("."), instruction.operands
    loads = parts[1] == "ld"
    if parts[1] not in ("ld", "st") or "16x32bx2" not in parts:
        raise NotImplementedError(instruction.opcode)
    registers, where, split = operands if loads else (operands[2], operands[0], operands[1])
    if loads:
        where, split = operands[1], operands[2]
    slot, offset = decoder.address(where)
    places = [decoder.source(name, 32) for name in names_of(registers)]
    apart = int(str(split))

    def run(program: Program, active: Array | None) -> None:
        if active is not None:
            raise Fault("not all threads access tensor memory")
        addresses = program.addresses(slot, offset, np.arange(program.threads)).astype(np.uint32)
        if not loads:
            program.tensor.store(addresses, apart, np.stack([program.get(place) for place in places], axis=1))
            return
        for place, found in zip(places, program.tensor.load(addresses, apart, len(places)), strict=True):
            program.put(place, found, None)

    return run


def _tensor_product(decoder: Decoder, instruction: Instruction) -> Action:
    """``tcgen05.mma``."""
    _, _, group, kind = instruction.opcode.split(".")
    if group != "cta_group::1" or len(instruction.operands) != 5:
        raise NotImplementedError(instruction.opcode)
    to, left, right, descriptor, adds = instruction.operands
    left_here = str(left).startswith("[")
    to_slot, to_offset = decoder.address(to)
    left_slot, left_offset = decoder.address(left) if left_here else (decoder.source(left, 64), 0)
    right_slot, form_slot, adds_slot = (
        decoder.source(right, 64),
        decoder.source(descriptor, 32),
        decoder.source(adds, 1),
    )

    def run(program: Program, active: Array | None) -> None:
        threads = numbers_of(program.threads, active)
        if len(threads) != 1:
            raise Fault(f"{len(threads)} threads start an MMA, which one thread must start")
        one = threads[0]
        found = tensor_memory.form(int(program.get(form_slot)[one]), kind.removeprefix("kind::"))
        target, factor = (
            int(program.addresses(*at, threads)[0]) for at in ((to_slot, to_offset), (left_slot, left_offset))
        )
        described, goes_on = int(program.get(right_slot)[one]), bool(program.get(adds_slot)[one])
        program.tensor.multiply(target, factor, described, goes_on, found, left_here)

    return run


MAKERS: dict[str, Maker] = {
    "wgmma": _group_product,
    "fence": _fence,
    "elect": _elect,
    "mbarrier": _barrier_of_products,
    "tcgen05": _tensor_memory,
}
