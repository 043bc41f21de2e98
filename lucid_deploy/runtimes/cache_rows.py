"""Rows of caches: take some out, put some together. Works with every runtime, since it goes through arrays.

A layer is a tuple of arrays ``(B, KV, T, ·)``: B rows, KV key/value heads, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.session import Array, Cache, Session

RowLayers = list[tuple[Array, ...]]  # of one row, each array (KV, tokens, ·), no padding


def row_layers(session: Session[Any], cache: Cache[Any], rows: Sequence[int]) -> list[RowLayers]:
    """Return the content of some rows of a cache, padding left out.

    Raises:
        LucidError: There is no such row.
    """
    for row in rows:
        if not 0 <= row < cache.batch:
            raise LucidError(f"The cache has rows 0 to {cache.batch - 1}, not {row}.")
    layers = session.layer_arrays(cache)
    return [[tuple(x[row][:, cache.mask[row]] for x in layer) for layer in layers] for row in rows]


def cache_of_rows(session: Session[Any], rows: Sequence[RowLayers]) -> Cache[Any]:
    """Return a cache of rows of unequal length, the shorter ones padded on the left with zeros.

    Raises:
        LucidError: No rows.
    """
    if not rows:
        raise LucidError("A cache needs at least one row.")
    lengths = [layers[0][0].shape[1] for layers in rows]
    longest = max(lengths)
    mask = np.arange(longest) >= longest - np.array(lengths)[:, None]  # (B, T)
    merged = []
    for parts in zip(*rows, strict=True):  # the rows of one layer
        arrays = []
        for pieces in zip(*parts, strict=True):  # the rows of one of its arrays
            heads, _, width = pieces[0].shape
            whole = np.zeros((len(rows), heads, longest, width), dtype=pieces[0].dtype)
            for row, piece in enumerate(pieces):
                whole[row, :, longest - lengths[row] :] = piece
            arrays.append(whole)
        merged.append(tuple(arrays))
    return session.cache_from_arrays(merged, mask)  # type: ignore[arg-type]


def select_rows(session: Session[Any], cache: Cache[Any], rows: Sequence[int]) -> Cache[Any]:
    """Return a new cache of some rows of another, in the given order; a row may come more than once.

    Raises:
        LucidError: No rows, or rows that are not there.
    """
    return cache_of_rows(session, row_layers(session, cache, rows))


def merge_caches(session: Session[Any], caches: Sequence[Cache[Any]]) -> Cache[Any]:
    """Return one cache with all rows of several, padded on the left.

    Raises:
        LucidError: No rows.
    """
    return cache_of_rows(session, [row for cache in caches for row in row_layers(session, cache, range(cache.batch))])
