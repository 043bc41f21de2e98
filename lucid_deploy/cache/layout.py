"""The cache of a layer: named tensors, each of one of three sorts.

=========  ==================================  ============================================================
sort       shape                               content
=========  ==================================  ============================================================
``rows``   ``(batch, heads, tokens, width)``   grows by one row a token; may be cut back to any length
``ring``   ``(batch, heads, held, width)``     the rows of the last ``window`` tokens, the newest last; a batch
                                               row with fewer tokens has them at the end; cannot be cut back
                                               once a row was dropped
``state``  ``(batch, *shape)``                 of fixed size, changed by every token; cannot be cut back
=========  ==================================  ============================================================

In a batch of T columns, padding included, a ring holds min(T, window) rows. Sessions, batches, files, memory estimates
and graphs use only these descriptions, and know nothing else about a layer's cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from lucid_deploy.errors import LucidError

SORTS = ("rows", "ring", "state")
ITEM_SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1}
ITEM_SIZES |= {"int64": 8, "int32": 4, "int8": 1, "bool": 1}
LARGEST = 1 << 24  # largest axis or window; larger ones are refused as mistakes, before they exhaust the memory

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class CacheTensor:
    """One tensor of a layer's cache, in its stored form. Raises ValueError for invalid fields."""

    name: str  # last part of its name in the graphs, past_key_values.{layer}.{name}, such as key
    dtype: str  # stored type as numpy names it, or PyTorch where numpy has no such type (bfloat16, float8_e4m3fn)
    # shape for one batch row, without the token axis: (heads, width) of rows and rings, the whole shape of a state
    shape: tuple[int, ...]
    sort: str = "rows"  # rows, ring or state
    window: int | None = None  # most tokens that a ring holds; None for other sorts

    def __post_init__(self) -> None:
        if self.sort not in SORTS or self.dtype not in ITEM_SIZES or not self.name.isidentifier():
            raise ValueError(f"cache tensor {self.name!r} cannot have sort {self.sort!r} and dtype {self.dtype!r}")
        sizes = (*self.shape, *((self.window,) if self.sort == "ring" else ()))
        if any(type(size) is not int or not 0 < size <= LARGEST for size in sizes):
            raise ValueError(f"cache tensor {self.name!r} cannot have shape {self.shape} and window {self.window}")
        if (self.sort != "state" and len(self.shape) != 2) or (self.sort == "ring") != (self.window is not None):
            raise ValueError(f"cache tensor {self.name!r} cannot have shape {self.shape} and window {self.window}")

    @property
    def has_tokens(self) -> bool:
        """Whether the tensor has a token axis, which is axis 2."""
        return self.sort != "state"

    def held(self, tokens: int) -> int:
        """Return the length of the token axis after ``tokens`` columns of a batch."""
        return min(tokens, self.window) if self.window is not None else tokens

    def is_recurrent(self, tokens: int) -> bool:
        """Whether the tensor cannot be cut back after ``tokens`` columns: a state, or a ring that has dropped rows."""
        return self.sort == "state" or (self.window is not None and tokens > self.window)

    def batch_shape(self, batch: int, tokens: int) -> tuple[int, ...]:
        """Return the tensor's shape for ``batch`` rows after ``tokens`` columns."""
        if not self.has_tokens:
            return (batch, *self.shape)
        heads, width = self.shape
        return (batch, heads, self.held(tokens), width)

    def axes(self, tokens: int | str, prefix: str = "") -> tuple[int | str, ...]:
        """Return the shape that graphs declare, with names of dynamic axes; ``tokens`` is the token axis of ``rows``.

        The name of a ring's token axis begins with ``prefix``: ``past_`` for the inputs of a call.
        """
        if not self.has_tokens:
            return ("batch", *self.shape)
        heads, width = self.shape
        return ("batch", heads, tokens if self.window is None else f"{prefix}window_{self.window}", width)

    def size(self, tokens: int) -> int:
        """Return the bytes of one batch row after ``tokens`` tokens."""
        return math.prod(self.batch_shape(1, tokens)) * ITEM_SIZES[self.dtype]


LayerLayout: TypeAlias = tuple[CacheTensor, ...]
CacheLayout: TypeAlias = tuple[LayerLayout, ...]  # one per layer


def layout_bytes(layout: CacheLayout, tokens: int) -> int:
    """Return the bytes of all layers' caches for one batch row after ``tokens`` tokens."""
    return sum(tensor.size(tokens) for layer in layout for tensor in layer)


def bytes_per_token(layout: CacheLayout) -> int:
    """Return the bytes that a token adds to all layers' caches in one batch row, once every ring is full."""
    return sum(tensor.size(1) for layer in layout for tensor in layer if tensor.sort == "rows")


def row_content(tensor: CacheTensor, array: Array, mask: Array, row: int) -> Array:
    """Return one batch row of a tensor without padding, ``(heads, tokens held, width)``, or a state's ``shape``."""
    if not tensor.has_tokens:
        return array[row]
    if tensor.sort == "rows":
        return array[row][:, mask[row]]
    count = tensor.held(int(mask[row].sum()))
    return array[row][:, array.shape[2] - count :]


def join_rows(tensor: CacheTensor, contents: Sequence[Array], tokens: int) -> Array:
    """Join rows from ``row_content`` to a batch of ``tokens`` columns, shorter ones padded on the left with zeros."""
    if not tensor.has_tokens:
        return np.stack(contents)
    heads, _, width = contents[0].shape
    held = tensor.held(tokens)
    whole = np.zeros((len(contents), heads, held, width), dtype=contents[0].dtype)
    for row, content in enumerate(contents):
        whole[row, :, held - content.shape[1] :] = content
    return whole


def check_truncation(layout: CacheLayout, length: int, tokens: int) -> None:
    """Raise a LucidError unless a cache of ``tokens`` columns can be cut back exactly to the first ``length``."""
    tensors = [(index, tensor) for index, layer in enumerate(layout) for tensor in layer if tensor.is_recurrent(tokens)]
    if length == tokens or not tensors:
        return
    index, tensor = tensors[0]
    reason = (
        "is a state, into which every token is mixed, so that later ones cannot be taken out again"
        if tensor.sort == "state"
        else f"holds the last {tensor.window} tokens only, and has dropped those before them"
    )
    raise LucidError(
        f"A cache of {tokens} tokens cannot be truncated to {length}: {tensor.name} of layer {index} {reason}. Fork "
        "the cache at the length to return to, or run the text again."
    )


def first_tokens(tensor: CacheTensor, array: Array, length: int, mask: Array) -> Array:
    """Cut a tensor back to its first ``length`` columns; ``check_truncation`` decides whether that is exact.

    ``mask``, bool ``(batch, T)``, covers all columns, also those to be dropped. A ring may have unused rows in front.
    """
    if tensor.sort == "ring":
        return np.take_along_axis(array, first_of_ring(mask, length, array.shape[2])[:, None, :, None], axis=2)
    return array[:, :, :length] if tensor.has_tokens else array


def first_of_ring(mask: Array, length: int, rows: int) -> Array:
    """Return where a ring's rows come from when a cache is cut back to ``length`` columns.

    A ring holds no padding, so each batch row loses as many rows as it has tokens in the columns that are cut off.

    Returns:
        For each place the index among the ring's ``rows``, int64 ``(batch, length)``; any where there is no token.
    """
    dropped = mask[:, length:].sum(axis=1, dtype=np.int64)  # (B,)
    return np.maximum(np.arange(rows - length, rows) - dropped[:, None], 0)


def held(tensor: CacheTensor, buffer: Array, tokens: int) -> Array:
    """Return a view of the used part of a buffer: the first ``tokens`` rows, a ring's last rows, or a whole state."""
    if not tensor.has_tokens:
        return buffer
    return buffer[:, :, :tokens] if tensor.sort == "rows" else buffer[:, :, buffer.shape[2] - tensor.held(tokens) :]


def new_buffer(tensor: CacheTensor, batch: int, room: int, dtype: Any) -> Array:
    """Allocate a buffer of zeros for ``room`` columns, or for the whole window of a ring."""
    if not tensor.has_tokens:
        return np.zeros((batch, *tensor.shape), dtype=dtype)
    heads, width = tensor.shape
    return np.zeros((batch, heads, tensor.window or room, width), dtype=dtype)
