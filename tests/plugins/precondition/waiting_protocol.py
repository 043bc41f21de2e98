"""The waiting protocol of ``kernel.py`` in small, run in every order that the GPU and its memory may choose.

A program has two threads, which share its rows: each stores one half and reads both halves of the rows before. Thread 0
takes the ticket, looks at the counter and counts up, as the compiled code does; its looks are loads with acquire, which
is what Triton makes of adding 0. Barriers let both threads know what either knows. There are fewer places than
programs: one starts when another has ended, in any order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from tests.plugins.precondition.weak_memory import Memory, View, add, join, read, start, write

THREADS = (0, 1)


@dataclass(frozen=True)
class Protocol:
    """Sizes, and what the protocol is made of; every part that is left out or turned round is a fault.

    Attributes:
        heads: Key/value heads.
        rows: Block rows of a head.
        resident: Programs that run at once.
        takes_ticket: Whether a program's number is its ticket; else it is its place in the grid.
        rows_ascend: Whether small numbers are early rows.
        acquires: Whether looks at the counter acquire.
        releases: Whether counting up releases.
        waits_for_stores: Whether a barrier stands between the threads' stores and the count.
        tells_by_barrier: Whether a barrier stands between the look and the other thread's loads.
        counts_last: Whether rows are stored before they are counted.
    """

    heads: int = 2
    rows: int = 3
    resident: int = 3
    takes_ticket: bool = True
    rows_ascend: bool = True
    acquires: bool = True
    releases: bool = True
    waits_for_stores: bool = True
    tells_by_barrier: bool = True
    counts_last: bool = True

    def block(self, number: int) -> tuple[int, int]:
        """Return head and row of a program's number: rows by rows over all heads."""
        row = number // self.heads
        return number % self.heads, row if self.rows_ascend else self.rows - 1 - row

    def counter(self, head: int) -> int:
        """Return the place of a head's counter; place 0 is the ticket."""
        return 1 + head

    def half(self, head: int, row: int, thread: int) -> int:
        """Return the place of half a row of Y."""
        return 1 + self.heads + 2 * (head * self.rows + row) + thread


@dataclass(frozen=True, order=True)
class Program:
    """A running program; ``done`` says which threads have finished the phase."""

    place: int
    number: int
    phase: str
    first: int  # row that is read next
    ready: int  # rows that may be read
    done: tuple[bool, bool]
    views: tuple[View, View]


class State(NamedTuple):
    """Everything there is at one time."""

    memory: Memory
    waiting: frozenset[int]  # places in the grid that have not started
    running: tuple[Program, ...]


@dataclass(frozen=True)
class Outcome:
    """What all runs together show.

    Attributes:
        states: How many there are.
        faults: ``unwritten row read``, ``deadlock``, ``rows missing``; empty if the protocol is right.
    """

    states: int
    faults: frozenset[str]


def explore(protocol: Protocol) -> Outcome:
    """Visit every state that can be reached."""
    places = [0] * (1 + protocol.heads + 2 * protocol.heads * protocol.rows)
    memory, _ = start(places)
    first = State(memory, frozenset(range(protocol.heads * protocol.rows)), ())
    seen, queue, faults = {first}, deque([first]), set[str]()
    while queue:
        state = queue.popleft()
        moved = False
        for after in _steps(protocol, state, faults):
            moved = True
            if after not in seen:
                seen.add(after)
                queue.append(after)
        if not moved and (state.running or state.waiting):
            faults.add("deadlock")
        elif not moved and any(len(writes) != 2 for writes in state.memory[1 + protocol.heads :]):
            faults.add("rows missing")
    return Outcome(len(seen), frozenset(faults))


def _steps(protocol: Protocol, state: State, faults: set[str]) -> Iterator[State]:
    memory, waiting, running = state
    if len(running) < protocol.resident and waiting:
        # With tickets it makes no difference which program starts.
        for place in sorted(waiting)[: 1 if protocol.takes_ticket else None]:
            view = (0,) * len(memory)
            phase = "ticket" if protocol.takes_ticket else _after_rows(protocol, place, 0)
            new = Program(place, place, phase, 0, 0, (False, False), (view, view))
            yield State(memory, waiting - {place}, tuple(sorted((*running, new))))
    for program in running:
        others = _without(running, program)
        for changed, after in _PHASES[program.phase](protocol, memory, program, faults):
            yield State(changed, waiting, others if after is None else tuple(sorted((*others, after))))


def _without(running: tuple[Program, ...], program: Program) -> tuple[Program, ...]:
    index = running.index(program)
    return running[:index] + running[index + 1 :]


Step = tuple[Memory, Program | None]


def _ticket(protocol: Protocol, memory: Memory, program: Program, faults: set[str]) -> Iterator[Step]:
    number, memory, view = add(memory, program.views[0], 0, 1)
    program = replace(program, number=number, views=(view, program.views[1]))
    yield memory, replace(program, phase=_after_rows(protocol, number, 0))


def _after_rows(protocol: Protocol, number: int, first: int) -> str:
    """Return what comes when rows below ``first`` have been read."""
    if first < protocol.block(number)[1]:
        return "look"
    return "store" if protocol.counts_last else "count"


def _look(protocol: Protocol, memory: Memory, program: Program, faults: set[str]) -> Iterator[Step]:
    head, row = protocol.block(program.number)
    for count, view in read(memory, program.views[0], protocol.counter(head), protocol.acquires):
        if count > program.first:  # else it looks again
            views = (view, program.views[1])
            if protocol.tells_by_barrier:
                views = (join(*views),) * 2
            yield memory, replace(program, phase="read", ready=min(count, row), done=(False, False), views=views)


def _read(protocol: Protocol, memory: Memory, program: Program, faults: set[str]) -> Iterator[Step]:
    head, _ = protocol.block(program.number)
    for thread in THREADS:
        if program.done[thread]:
            continue
        view = program.views[thread]
        for row in range(program.first, program.ready):
            for half in THREADS:
                if any(value == 0 for value, _ in read(memory, view, protocol.half(head, row, half))):
                    faults.add("unwritten row read")
        after = replace(program, done=_with(program.done, thread))
        if all(after.done):
            phase = _after_rows(protocol, program.number, program.ready)
            after = replace(after, phase=phase, first=program.ready, done=(False, False))
        yield memory, after


def _store(protocol: Protocol, memory: Memory, program: Program, faults: set[str]) -> Iterator[Step]:
    head, row = protocol.block(program.number)
    for thread in THREADS:
        if not program.done[thread]:
            changed, view = write(memory, program.views[thread], protocol.half(head, row, thread), 1)
            views = (view, program.views[1]) if thread == 0 else (program.views[0], view)
            yield changed, _stored(protocol, replace(program, done=_with(program.done, thread), views=views))
    if not protocol.waits_for_stores and program.done == (True, False):  # thread 0 goes on alone
        changed, view = _count_up(protocol, memory, program)
        yield changed, replace(program, phase="late store", views=(view, program.views[1]))


def _stored(protocol: Protocol, program: Program) -> Program | None:
    if not all(program.done):
        return program
    if not protocol.counts_last:
        return None
    views = (join(*program.views),) * 2 if protocol.waits_for_stores else program.views
    return replace(program, phase="count", done=(False, False), views=views)


def _late_store(protocol: Protocol, memory: Memory, program: Program, faults: set[str]) -> Iterator[Step]:
    head, row = protocol.block(program.number)
    yield write(memory, program.views[1], protocol.half(head, row, 1), 1)[0], None


def _count(protocol: Protocol, memory: Memory, program: Program, faults: set[str]) -> Iterator[Step]:
    memory, view = _count_up(protocol, memory, program)
    views = (view, program.views[1])
    yield memory, None if protocol.counts_last else replace(program, phase="store", views=views)


def _count_up(protocol: Protocol, memory: Memory, program: Program) -> tuple[Memory, View]:
    head, _ = protocol.block(program.number)
    _, memory, view = add(memory, program.views[0], protocol.counter(head), 1, release=protocol.releases)
    return memory, view


def _with(done: tuple[bool, bool], thread: int) -> tuple[bool, bool]:
    return (True, done[1]) if thread == 0 else (done[0], True)


_PHASES = {"ticket": _ticket, "look": _look, "read": _read, "store": _store, "late store": _late_store, "count": _count}
