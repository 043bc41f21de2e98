"""Caches of texts that were run before, found again by their longest common prefix with a new text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

from lucid_deploy.cache.layout import cuts_exactly
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.session import Array, Cache, Session

_Key = tuple[tuple[str, int], bytes]  # owner and adapter, token ids


class PrefixStore:
    """Stores caches within a budget; the least recently used one is dropped first.

    A stored cache is exact for any text with the same beginning, because K and Y of a token depend on no later token. A
    cache that cannot be cut back (a layer keeps a state, or a window that is full) is found only by texts that begin
    with all of its text, so beginnings of a text are stored as well.

    Entries have owners, who share the budget and nothing else. Otherwise the time of an answer would tell one client
    what another has asked. Keys and values depend on the adapter too, so texts of different adapters share nothing.

    ``budget`` is the most tokens to keep, over all entries; 0 keeps nothing.
    """

    def __init__(self, session: Session[Any], budget: int) -> None:
        if budget < 0:
            raise LucidError(f"The budget of the prefix store must be 0 tokens or more, not {budget}.")
        self.budget = budget
        self._session = session
        self._entries: OrderedDict[_Key, tuple[Array, Cache[Any]]] = OrderedDict()  # the most recently used comes last

    @property
    def tokens(self) -> int:
        """Tokens stored now."""
        return sum(len(ids) for ids, _ in self._entries.values())

    def __len__(self) -> int:
        """Entries stored now."""
        return len(self._entries)

    def add(self, ids: Sequence[int], cache: Cache[Any], owner: str = "") -> None:
        """Store a fork of a text's cache (one row without padding) for its owner.

        Nothing is stored if it exceeds the budget, or if the text is the beginning of a stored one.
        """
        new = np.asarray(ids, dtype=np.int64)
        if cache.batch != 1 or not cache.mask.all() or cache.length != len(new):
            raise LucidError(
                f"A prefix is kept from a cache of one row without padding; this one has {cache.batch} rows of "
                f"{cache.length} tokens, for {len(new)} token ids."
            )
        if not 0 < len(new) <= self.budget:
            return
        group = owner, int(cache.adapter_ids[0])
        for key, old in self._of(group):
            shared = _common(old, new)
            if shared == len(new) and self._gives(shared, old):  # this one and more is there already
                self._entries.move_to_end(key)
                return
            if shared == len(old) and self._gives(shared, new):  # the new one holds all of it
                del self._entries[key]
        while self._entries and self.tokens + len(new) > self.budget:
            self._entries.popitem(last=False)
        self._entries[group, new.tobytes()] = (new, self._session.fork(cache))

    def find(self, ids: Sequence[int], most: int | None = None, owner: str = "", adapter: int = 0) -> Cache[Any] | None:
        """Return a cache of the longest beginning of a text that its owner has run with an adapter; else None.

        At most ``most`` tokens are returned; None: all of the text.
        """
        wanted = np.asarray(ids, dtype=np.int64)[: len(ids) if most is None else most]
        common = ((_common(old, wanted), key, old) for key, old in self._of((owner, adapter)))
        shared, best = max(
            ((shared, key) for shared, key, old in common if self._gives(shared, old)),
            key=lambda item: item[0],
            default=(0, (("", 0), b"")),
        )
        if shared == 0:
            return None
        self._entries.move_to_end(best)
        cache = self._session.fork(self._entries[best][1])
        self._session.truncate(cache, shared)
        return cache

    def clear(self) -> None:
        """Drop all entries."""
        self._entries.clear()

    def gives_beginnings(self, tokens: int) -> bool:
        """Whether a stored cache of so many tokens serves texts that share only its beginning."""
        return cuts_exactly(self._session.layout, 0, tokens)

    def _gives(self, shared: int, ids: Array) -> bool:
        """Whether the cache of a text can be cut back to its first tokens."""
        return cuts_exactly(self._session.layout, shared, len(ids))

    def _of(self, group: tuple[str, int]) -> list[tuple[_Key, Array]]:
        return [(key, ids) for key, (ids, _) in self._entries.items() if key[0] == group]


def _common(first: Array, second: Array) -> int:
    """Return how many tokens two texts begin with in common."""
    length = min(len(first), len(second))
    differ = first[:length] != second[:length]
    return int(differ.argmax()) if differ.any() else length
