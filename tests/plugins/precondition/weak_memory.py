"""Memory as threads may see it: every write stays, and a thread reads any that it does not know to be overwritten.

A thread's view says, for each place, the oldest write that it may still read. A relaxed read may return any from there
on. A release attaches the thread's view to its write, and an acquire takes over the view of the write that it reads. An
atomic addition reads the newest write, and passes on the view that is attached to it (PTX: observation through a chain
of atomics). What PTX orders by causality is what views carry from thread to thread; writes become known to threads one
by one (PTX is not multi-copy atomic). Source: PTX ISA, "Memory Consistency Model"; views: Kang and others, "A promising
semantics for relaxed-memory concurrency", without promises, since no write here precedes a read that decides it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

View = tuple[int, ...]  # for every place, the number of the oldest write that may be read


class Write(NamedTuple):
    """A value, and what who acquires it gets to know."""

    value: int
    view: View


Memory = tuple[tuple[Write, ...], ...]  # the writes to every place, in the order of that place


def start(values: list[int]) -> tuple[Memory, View]:
    """Return memory with these values, and the view of a thread that starts."""
    view = (0,) * len(values)
    return tuple((Write(value, view),) for value in values), view


def join(first: View, second: View) -> View:
    """Return what is known to who knows both, as after a barrier."""
    return tuple(map(max, first, second))


def read(memory: Memory, view: View, place: int, acquire: bool = False) -> Iterator[tuple[int, View]]:
    """Yield every value that may be read, with the view afterwards."""
    for number in range(view[place], len(memory[place])):
        seen = _at_least(view, place, number)
        value, attached = memory[place][number]
        yield value, join(seen, attached) if acquire else seen


def write(memory: Memory, view: View, place: int, value: int, release: bool = False) -> tuple[Memory, View]:
    """Write behind all other writes to a place."""
    after = _at_least(view, place, len(memory[place]))
    return _appended(
        memory, place, Write(value, after if release else _at_least((0,) * len(view), place, after[place]))
    ), after


def add(
    memory: Memory, view: View, place: int, value: int, acquire: bool = False, release: bool = False
) -> tuple[int, Memory, View]:
    """Add atomically; return the value before."""
    old, attached = memory[place][-1]
    after = _at_least(view, place, len(memory[place]))
    if acquire:
        after = join(after, attached)
    own = after if release else _at_least((0,) * len(view), place, after[place])
    return old, _appended(memory, place, Write(old + value, join(own, attached))), after


def _at_least(view: View, place: int, number: int) -> View:
    return (*view[:place], max(view[place], number), *view[place + 1 :])


def _appended(memory: Memory, place: int, new: Write) -> Memory:
    return (*memory[:place], (*memory[place], new), *memory[place + 1 :])
