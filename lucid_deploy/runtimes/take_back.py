"""Taking tokens back that a run of several has written: what speculative decoding does with drafts that are rejected.

A row of K or Y depends on nothing behind it and never changes once it is written. So dropping the rows of rejected
tokens leaves exactly the cache of the tokens that are kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lucid_deploy.runtimes.cache_rows import select_rows
from lucid_deploy.runtimes.session import Array, Cache, Session

_HOLES = 64  # columns without a token in any row that a cache may have …
_SHARE = 8  # … or one in so many, before it is packed


def take_back(session: Session[Any], cache: Cache[Any], new: int, kept: Array, is_sound: bool = True) -> None:
    """Keep the first tokens of the last run of several, as if the others had never been run.

    Where cutting a cache copies all of it, rejected tokens become padding instead, which takes no part in anything, and
    a cache with many of them is packed.

    Args:
        session: Whose cache it is.
        cache: Changed in place.
        new: Columns of the last run.
        kept: How many of them each row keeps, ``(B,)``.
        is_sound: Whether all their logits are finite. What is padding is still multiplied, by zero: numbers that are
            not finite would spread, and are taken out.
    """
    start, most = cache.length - new, int(kept.max())
    mask = cache.mask.copy()
    mask[:, start:] &= np.arange(new) < kept[:, None]
    cache.mask = mask
    if not is_sound:
        _take_out(session, cache)
        return
    if session.cuts_freely and most < new:
        session.truncate(cache, start + most)
    holes = cache.length - int(cache.mask.sum(axis=1).max())
    if holes > max(_HOLES, cache.length // _SHARE):
        pack(session, cache)


def make_room(session: Session[Any], cache: Cache[Any], new: int) -> None:
    """Pack a cache if its holes stand in the way of so many new columns."""
    limit = session.context_limit
    if limit is not None and cache.length + new > limit:
        pack(session, cache)


def pack(session: Session[Any], cache: Cache[Any]) -> None:
    """Bring a cache's tokens together, shorter rows padded on the left; nothing is done where there are no holes."""
    if cache.length == int(cache.mask.sum(axis=1).max()):
        return
    _take_out(session, cache)


def _take_out(session: Session[Any], cache: Cache[Any]) -> None:
    packed = select_rows(session, cache, range(cache.batch))
    cache.mask, cache.layers = packed.mask, packed.layers
