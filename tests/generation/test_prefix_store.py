"""Whose stored prefixes are found. What is found is tested beside the other operations on caches, in sessions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.errors import LucidError
from lucid_deploy.generation.prefix_store import PrefixStore
from lucid_deploy.runtimes.session import Cache

TEXT = list(range(1, 21))


class CountingSession:
    """The operations on caches that a store needs, on caches without layers."""

    layout: tuple[Any, ...] = ()

    def fork(self, cache: Cache[Any]) -> Cache[Any]:
        return Cache(cache.mask.copy(), [])

    def truncate(self, cache: Cache[Any], length: int) -> None:
        cache.mask = cache.mask[:, :length]


def cache_of(tokens: int) -> Cache[Any]:
    return Cache(np.ones((1, tokens), dtype=bool), [])


def store(budget: int = 100) -> PrefixStore:
    session: Any = CountingSession()
    return PrefixStore(session, budget)


def found(kept: PrefixStore, ids: list[int], owner: str = "") -> int:
    """Return how many tokens are found."""
    cache = kept.find(ids, owner=owner)
    return 0 if cache is None else cache.length


def test_owners_do_not_find_each_others_texts() -> None:
    kept = store()
    kept.add(TEXT, cache_of(20), "a")
    assert found(kept, TEXT, "a") == 20
    assert found(kept, [*TEXT[:7], 0], "a") == 7
    for owner in ("b", "", "a "):
        assert found(kept, TEXT, owner) == 0


def test_the_same_text_of_two_owners_is_kept_twice() -> None:
    kept = store()
    kept.add(TEXT, cache_of(20), "a")
    kept.add(TEXT[:10], cache_of(10), "b")
    assert (len(kept), kept.tokens) == (2, 30)
    assert (found(kept, TEXT, "a"), found(kept, TEXT, "b")) == (20, 10)
    kept.add(TEXT, cache_of(20), "b")  # takes the place of its own beginning alone
    assert (len(kept), kept.tokens) == (2, 40)


def test_owners_share_the_budget() -> None:
    kept = store(budget=45)
    for owner in ("a", "b", "c"):
        kept.add(TEXT, cache_of(20), owner)
    assert [found(kept, TEXT, owner) for owner in ("a", "b", "c")] == [0, 20, 20]


def test_a_cache_that_cannot_be_cut_back_is_found_by_longer_texts_only() -> None:
    """And it takes no other's place: its beginnings are kept beside it."""
    session: Any = CountingSession()
    session.layout = ((CacheTensor("recurrent_state", "float32", (2, 4, 4), "state"),),)
    kept = PrefixStore(session, 100)
    assert not kept.gives_beginnings(20)
    kept.add(TEXT, cache_of(20))
    kept.add(TEXT[:8], cache_of(8))
    assert (len(kept), kept.tokens) == (2, 28)
    assert found(kept, [*TEXT, 5, 5]) == 20
    assert found(kept, TEXT[:19]) == 8  # not the 19 that the longer text begins with
    assert found(kept, [*TEXT[:12], 0]) == 8 and found(kept, TEXT[:7]) == 0


def test_a_full_window_is_such_a_cache_and_one_that_is_not_full_is_none() -> None:
    session: Any = CountingSession()
    session.layout = ((CacheTensor("key", "float32", (2, 4), "ring", 10),),)
    kept = PrefixStore(session, 100)
    assert kept.gives_beginnings(10) and not kept.gives_beginnings(11)
    kept.add(TEXT[:10], cache_of(10))
    kept.add(TEXT, cache_of(20))
    assert (found(kept, TEXT[:15]), found(kept, TEXT[:4]), len(kept)) == (10, 4, 2)


def test_a_budget_below_nothing_is_refused() -> None:
    with pytest.raises(LucidError, match="0 tokens or more"):
        store(-1)


def test_a_cleared_store_keeps_nothing_and_takes_more() -> None:
    kept = store()
    kept.add(TEXT, cache_of(20))
    kept.clear()
    assert (kept.tokens, found(kept, TEXT)) == (0, 0)
    kept.add(TEXT, cache_of(20))
    assert found(kept, TEXT) == 20
