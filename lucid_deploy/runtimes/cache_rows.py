"""Batch rows of caches: select and join them, and take back tokens that a step wrote, in every runtime.

A token's row of K or Y depends on no later token and never changes once it is written. So dropping the rows of rejected
drafts leaves exactly the cache of the tokens that are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.cache.layout import LayerLayout, join_rows, row_content
from lucid_deploy.cache.storage import decoded_layout
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.session import Array, Cache, Session

_HOLES = 64  # a cache is packed if it has more columns than this beyond the tokens of its longest row …
_SHARE = 8  # … and more than this fraction (1 / 8) of all its columns


@dataclass(frozen=True)
class CacheRow:
    """The content of one row of a cache, without padding."""

    tokens: int  # how many tokens the row has seen
    layers: list[tuple[Array, ...]]  # per layer the tensors of its layout, scales applied, from row_content
    adapter: int = 0  # the slot of its adapter, as in Cache.adapter_ids


def _layouts(session: Session[Any]) -> list[LayerLayout]:
    return [decoded_layout(layer) for layer in session.layout]


def row_layers(session: Session[Any], cache: Cache[Any], rows: Sequence[int]) -> list[CacheRow]:
    """Return the content of some rows of a cache, without padding."""
    for row in rows:
        if not 0 <= row < cache.batch:
            raise LucidError(f"The cache has rows 0 to {cache.batch - 1}, not {row}.")
    pairs = list(zip(_layouts(session), session.layer_arrays(cache), strict=True))
    return [
        CacheRow(
            int(cache.mask[row].sum()),
            [tuple(row_content(t, x, cache.mask, row) for t, x in zip(*pair, strict=True)) for pair in pairs],
            int(cache.adapter_ids[row]),
        )
        for row in rows
    ]


def cache_of_rows(session: Session[Any], rows: Sequence[CacheRow]) -> Cache[Any]:
    """Return a cache of rows of unequal length, the shorter ones padded on the left with zeros."""
    if not rows:
        raise LucidError("A cache needs at least one row.")
    lengths = [row.tokens for row in rows]
    longest = max(lengths)
    mask = np.arange(longest) >= longest - np.array(lengths)[:, None]  # (B, T)
    merged = [
        tuple(
            join_rows(tensor, [row.layers[index][place] for row in rows], longest)
            for place, tensor in enumerate(layout)
        )
        for index, layout in enumerate(_layouts(session))
    ]
    return session.cache_from_arrays(merged, mask, np.array([row.adapter for row in rows], np.int64))


def select_rows(session: Session[Any], cache: Cache[Any], rows: Sequence[int]) -> Cache[Any]:
    """Return a new cache of some rows of another, in the given order; a row may come more than once."""
    return cache_of_rows(session, row_layers(session, cache, rows))


def take_back(session: Session[Any], cache: Cache[Any], new: int, kept: Array, is_sound: bool = True) -> None:
    """Keep each row's first ``kept``, ``(B,)``, of the last run's ``new`` columns, as if the others had never been run.

    Rejected tokens become padding; columns that all rows reject are cut off if that copies at most rings. A cache with
    much padding is packed. If logits are not finite (``is_sound`` False), every cache is packed: attention multiplies
    masked rows by 0, and 0 · ∞ is NaN.
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
    """Pack a cache if ``new`` more columns would exceed the session's longest context."""
    limit = session.context_limit
    if limit is not None and cache.length + new > limit:
        pack(session, cache)


def pack(session: Session[Any], cache: Cache[Any]) -> None:
    """Remove a cache's padding, except on the left of shorter rows; do nothing if the longest row has no padding."""
    if cache.length == int(cache.mask.sum(axis=1).max()):
        return
    _take_out(session, cache)


def _take_out(session: Session[Any], cache: Cache[Any]) -> None:
    packed = select_rows(session, cache, range(cache.batch))
    cache.mask, cache.layers = packed.mask, packed.layers
