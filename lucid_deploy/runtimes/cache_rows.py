"""Rows of caches: take some out, put some together. Works with every runtime, since it goes through arrays.

What a layer's tensors are, its layout says, see :mod:`lucid_deploy.cache.layout`.
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


@dataclass(frozen=True)
class CacheRow:
    """What one row of a cache holds, padding left out.

    Attributes:
        tokens: How many tokens it has seen.
        layers: Per layer the tensors of its layout without scales, as :func:`~lucid_deploy.cache.layout.row_content`
            gives them.
    """

    tokens: int
    layers: list[tuple[Array, ...]]


def _layouts(session: Session[Any]) -> list[LayerLayout]:
    return [decoded_layout(layer) for layer in session.layout]


def row_layers(session: Session[Any], cache: Cache[Any], rows: Sequence[int]) -> list[CacheRow]:
    """Return the content of some rows of a cache, padding left out.

    Raises:
        LucidError: There is no such row.
    """
    for row in rows:
        if not 0 <= row < cache.batch:
            raise LucidError(f"The cache has rows 0 to {cache.batch - 1}, not {row}.")
    pairs = list(zip(_layouts(session), session.layer_arrays(cache), strict=True))
    return [
        CacheRow(
            int(cache.mask[row].sum()),
            [tuple(row_content(t, x, cache.mask, row) for t, x in zip(*pair, strict=True)) for pair in pairs],
        )
        for row in rows
    ]


def cache_of_rows(session: Session[Any], rows: Sequence[CacheRow]) -> Cache[Any]:
    """Return a cache of rows of unequal length, the shorter ones padded on the left with zeros.

    Raises:
        LucidError: No rows.
    """
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
    return session.cache_from_arrays(merged, mask)


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
