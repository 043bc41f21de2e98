"""Block rows wait for each other without a deadlock and read nothing unwritten, in every order there is, in small."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from tests.plugins.precondition.waiting_protocol import Protocol, explore
from tests.plugins.precondition.weak_memory import add, join, read, start, write

X, Y, FLAG, OTHER = range(4)


@pytest.mark.parametrize(
    ("heads", "rows", "resident"), [(1, 3, 1), (1, 4, 2), (1, 4, 4), (2, 2, 2), (2, 2, 4), (2, 3, 2), (3, 2, 2)]
)
def test_the_protocol_is_right(heads: int, rows: int, resident: int) -> None:
    found = explore(Protocol(heads, rows, resident))
    assert not found.faults and found.states > 10 * heads * rows


def test_it_visits_as_many_states_as_the_page_on_tensorrt_says() -> None:
    assert explore(Protocol(heads=2, rows=3, resident=2)).states == 4970


@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ({"releases": False}, "unwritten row read"),
        ({"acquires": False}, "unwritten row read"),
        ({"waits_for_stores": False}, "unwritten row read"),
        ({"tells_by_barrier": False}, "unwritten row read"),
        ({"counts_last": False}, "unwritten row read"),
        ({"takes_ticket": False}, "deadlock"),
        ({"rows_ascend": False}, "deadlock"),
    ],
    ids=str,
)
def test_every_fault_is_found(fault: dict[str, bool], seen: str) -> None:
    assert explore(replace(Protocol(heads=1, rows=3, resident=2), **fault)).faults == {seen}


def test_without_tickets_it_takes_a_place_for_every_program() -> None:
    """What makes the ticket needed: with places for all, the order of starting does not matter."""
    assert not explore(Protocol(heads=1, rows=3, resident=3, takes_ticket=False)).faults
    assert explore(Protocol(heads=1, rows=3, resident=2, takes_ticket=False)).faults == {"deadlock"}


# The memory by itself: litmus tests with known answers under PTX.


def values(memory, view, *places) -> set[tuple[int, ...]]:
    """Return what one thread may read from places in turn."""
    found = {((), view)}
    for place in places:
        found = {((*got, value), after) for got, view in found for value, after in read(memory, view, place)}
    return {got for got, _ in found}


@pytest.mark.parametrize(("release", "acquire"), list(itertools.product([True, False], repeat=2)))
def test_a_message_is_passed_by_release_and_acquire_only(release: bool, acquire: bool) -> None:
    memory, fresh = start([0] * 4)
    memory, view = write(memory, fresh, X, 1)
    memory, _ = write(memory, view, FLAG, 1, release)
    after = [seen for value, seen in read(memory, fresh, FLAG, acquire) if value]
    assert {got for view in after for got in values(memory, view, X)} == (
        {(1,)} if release and acquire else {(0,), (1,)}
    )


@pytest.mark.parametrize("by_addition", [True, False])
def test_a_release_is_passed_on_by_atomic_additions_but_not_by_writes(by_addition: bool) -> None:
    memory, fresh = start([0] * 4)
    memory, view = write(memory, fresh, X, 1)
    _, memory, _ = add(memory, view, FLAG, 1, release=True)
    if by_addition:
        _, memory, _ = add(memory, fresh, FLAG, 1)
    else:
        memory, _ = write(memory, fresh, FLAG, 2)
    after = [seen for value, seen in read(memory, fresh, FLAG, acquire=True) if value == 2]
    assert {got for view in after for got in values(memory, view, X)} == ({(1,)} if by_addition else {(0,), (1,)})


def test_what_was_acquired_is_released_again() -> None:
    """Three threads in a chain (ISA2)."""
    memory, fresh = start([0] * 4)
    memory, view = write(memory, fresh, X, 1)
    memory, _ = write(memory, view, FLAG, 1, release=True)
    [second] = [seen for value, seen in read(memory, fresh, FLAG, acquire=True) if value]
    memory, _ = write(memory, second, OTHER, 1, release=True)
    [third] = [seen for value, seen in read(memory, fresh, OTHER, acquire=True) if value]
    assert values(memory, third, X) == {(1,)}


def test_a_barrier_shares_what_either_thread_knows() -> None:
    memory, fresh = start([0] * 4)
    memory, view = write(memory, fresh, X, 1)
    memory, _ = write(memory, join(view, fresh), FLAG, 1, release=True)
    [seen] = [seen for value, seen in read(memory, fresh, FLAG, acquire=True) if value]
    assert values(memory, seen, X) == {(1,)}


def test_two_readers_may_see_two_writes_in_different_orders() -> None:
    """IRIW: PTX is not multi-copy atomic, and acquire alone does not make it so."""
    memory, fresh = start([0] * 4)
    memory, _ = write(memory, fresh, X, 1, release=True)
    memory, _ = write(memory, fresh, Y, 1, release=True)
    assert (1, 0) in values(memory, fresh, X, Y) and (1, 0) in values(memory, fresh, Y, X)


def test_a_place_never_goes_back() -> None:
    """Coherence: who has read the newer of two writes does not read the older one afterwards."""
    memory, fresh = start([0] * 4)
    for value in (1, 2):
        memory, _ = write(memory, fresh, X, value)
    assert values(memory, fresh, X, X) == {(a, b) for a in range(3) for b in range(a, 3)}
