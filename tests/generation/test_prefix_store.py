"""Which blocks a store finds, keeps and drops, with caches whose rows depend on all earlier tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lucid_deploy.cache.layout import CacheTensor, held
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.prefix_store import BLOCK, PrefixStore
from lucid_deploy.runtimes.session import Cache
from tests.generation.store_integrity import check_integrity

ROWS = CacheTensor("key", "float32", (2, 3))
STATE = CacheTensor("recurrent_state", "float32", (2, 5), "state")
RING = CacheTensor("value", "float32", (2, 3), "ring", 40)
TEXT = [7, 3, 11, 3] * (4 * BLOCK // 4)  # four equal blocks in a row
OTHER = [token + 1 for token in TEXT[:BLOCK]]


class FakeSession:
    """A session with numpy caches and the layers that a test names."""

    def __init__(self, *tensors: CacheTensor) -> None:
        self.layout, self.in_place = (tensors,), self

    def empty_cache(self, batch: int, adapters: np.ndarray) -> Cache[Any]:
        return self.cache([], int(adapters[0]))

    def cache(self, ids: Sequence[int], adapter: int = 0) -> Cache[Any]:
        """Return a text's cache as decoding leaves it: with room after rows and before a ring's rows."""
        sums = np.cumsum((np.array(ids, np.float32) + 1) * np.arange(1, len(ids) + 1))  # of all tokens so far
        rows = np.broadcast_to(sums[:, None], (1, 2, len(ids), 3))
        layer = []
        for tensor in self.layout[0]:
            if tensor.sort == "rows":
                layer.append(np.pad(rows, [(0, 0), (0, 0), (0, 5), (0, 0)], constant_values=np.nan))
            elif tensor.sort == "ring":
                newest = rows[:, :, max(0, len(ids) - 40) :]
                front = 40 - newest.shape[2]
                layer.append(np.pad(newest, [(0, 0), (0, 0), (front, 0), (0, 0)], constant_values=np.nan))
            else:
                layer.append(np.full((1, 2, 5), sums[-1] if len(sums) else 0, np.float32))
        return Cache(np.ones((1, len(ids)), dtype=bool), [tuple(layer)], np.array([adapter]))


def make(budget: int = 10 * BLOCK, *tensors: CacheTensor) -> tuple[PrefixStore, FakeSession]:
    session: Any = FakeSession(*(tensors or (ROWS,)))
    return PrefixStore(session, budget), session


def add(store: PrefixStore, ids: list[int], owner: str = "", adapter: int = 0) -> None:
    session: Any = store._session
    store.add(ids, session.cache(ids, adapter), owner)
    check_integrity(store)


def found(store: PrefixStore, ids: list[int], owner: str = "", adapter: int = 0) -> int:
    """Return how many blocks are found, after checking their rows, rings and states."""
    session: Any = store._session
    cache, blocks = store.find(ids, owner=owner, adapter=adapter)
    check_integrity(store)
    store.release(blocks)
    assert cache.length == len(blocks) * BLOCK and cache.adapter_ids.tolist() == [adapter]
    wanted = session.cache(ids[: cache.length], adapter)
    for tensor, ours, theirs in zip(session.layout[0], cache.layers[0], wanted.layers[0], strict=True):
        np.testing.assert_array_equal(held(tensor, ours, cache.length), held(tensor, theirs, cache.length))
    return len(blocks)


def test_a_text_is_found_by_whole_blocks_after_the_same_beginning() -> None:
    store, _ = make()
    add(store, [*TEXT, 5, 5])
    assert store.tokens == len(TEXT)
    assert [found(store, TEXT[:count]) for count in (31, 32, 63, 96, 128)] == [0, 1, 1, 3, 4]
    assert found(store, [*TEXT[: 2 * BLOCK], *OTHER]) == 2
    assert found(store, TEXT[1:]) == found(store, [*OTHER, *TEXT]) == 0
    assert store.find(TEXT, most=len(TEXT) - 1)[0].length == 3 * BLOCK


def test_a_common_beginning_is_stored_once() -> None:
    store, _ = make()
    add(store, TEXT)
    add(store, [*TEXT, *OTHER])
    add(store, [*TEXT[:BLOCK], *OTHER, *TEXT[:BLOCK]])
    assert store.tokens == (4 + 1 + 2) * BLOCK
    assert found(store, [*TEXT, *OTHER, 9]) == 5 and found(store, [*TEXT[:BLOCK], *OTHER, *TEXT]) == 3


def test_owners_and_adapters_find_nothing_of_each_other() -> None:
    store, _ = make()
    add(store, TEXT, "a", adapter=1)
    for owner, adapter in (("b", 1), ("", 1), ("a ", 1), ("a", 0), ("a", 2)):
        assert found(store, TEXT, owner, adapter) == 0
    add(store, TEXT[:BLOCK], "b", adapter=1)
    assert store.tokens == 5 * BLOCK and found(store, TEXT, "a", 1) == 4 and found(store, TEXT, "b", 1) == 1


def test_the_least_recently_used_leaf_is_dropped_first() -> None:
    store, _ = make(6 * BLOCK)
    add(store, TEXT)
    add(store, [*OTHER, *TEXT[:BLOCK]])
    assert found(store, TEXT) == 4
    add(store, [*TEXT[:BLOCK], *OTHER], "another")
    assert (found(store, OTHER), found(store, TEXT), store.tokens) == (0, 4, 6 * BLOCK)
    add(store, [*OTHER, *OTHER])  # TEXT was used last, so blocks of "another" are dropped
    assert (found(store, TEXT), found(store, TEXT, "another")) == (4, 0)
    add(store, OTHER * 5)  # three more blocks than the two that are there
    assert (found(store, OTHER * 6), found(store, TEXT)) == (5, 1)


def test_blocks_that_requests_read_are_not_dropped() -> None:
    store, _ = make(4 * BLOCK)
    add(store, TEXT)
    _, first = store.find(TEXT)
    _, second = store.find(TEXT, most=2 * BLOCK)
    add(store, OTHER * 4)
    assert (found(store, TEXT), found(store, OTHER)) == (4, 0)
    store.release(first)
    add(store, OTHER * 4)  # stores as many of the first blocks as fit
    assert (found(store, TEXT), found(store, OTHER * 4), store.readers) == (2, 2, 2)
    store.release(second)
    add(store, OTHER * 4)
    assert (found(store, TEXT), found(store, OTHER * 4), store.readers) == (0, 4, 0)


def test_states_are_found_where_they_were_stored() -> None:
    store, _ = make(20 * BLOCK, ROWS, RING, STATE)
    assert not store.takes(BLOCK + 1) and store.takes(2 * BLOCK)
    add(store, TEXT[: 3 * BLOCK])
    add(store, TEXT[:BLOCK])  # the block's rows are stored already, its state is not
    add(store, TEXT)
    assert [found(store, TEXT[:count]) for count in (32, 64, 95, 96, 127, 128)] == [1, 1, 1, 3, 3, 4]
    add(store, [*TEXT, 5])
    assert store.tokens == 4 * BLOCK
    cache, _ = store.find(TEXT)
    cache.layers[0][2][:] = 0  # a state is written in place while a request runs
    assert found(store, TEXT) == 4


def test_states_count_by_their_memory() -> None:
    """A ring of 40 rows of 6 numbers and a state of 10 take the memory of two blocks of 32 rows."""
    store, _ = make(6 * BLOCK, ROWS, RING, STATE)
    add(store, TEXT)
    assert found(store, TEXT) == 4
    add(store, OTHER)
    assert (found(store, TEXT), found(store, OTHER)) == (0, 1)
    add(store, OTHER * 5)  # never fits with its state, so nothing is dropped to make room
    assert found(store, OTHER) == 1
    store, _ = make(2 * BLOCK, STATE)
    for text in (TEXT, OTHER, TEXT[:BLOCK]):
        add(store, text)
    assert (store.tokens, found(store, TEXT)) == (BLOCK, 1)


@pytest.mark.parametrize(("budget", "message"), [(-1, "0 tokens or more"), (10**14, r"would take .* GiB; this mach")])
def test_impossible_budgets_are_refused(budget: int, message: str) -> None:
    with pytest.raises(LucidError, match=message):
        make(budget)


def test_a_cache_of_another_length_is_refused_and_less_than_a_block_is_not_stored() -> None:
    store, session = make()
    with pytest.raises(LucidError, match="one row without padding"):
        store.add(TEXT[:-1], session.cache(TEXT))
    store, session = make(BLOCK - 1)
    add(store, TEXT)
    assert (store.tokens, found(store, TEXT)) == (0, 0)
