"""How a cache stores K and Y: the tensors of a layer, and the conversion of rows, in numpy.

==========  ===========================================================================================
``float32`` and other float types: the values, rounded to that type.
``int8``    whole numbers −127 … 127, and for every row (token and head) of K and of Y a float32 scale,
            the row's largest magnitude over 127; a value is its number times the scale.
==========  ===========================================================================================

The graphs and :mod:`lucid_deploy.cache.codecs` do the same in their own terms. A layer's tensors come in one order
everywhere: K, Y and, with int8, the scales of K and of Y; all are ``(B, KV, T, ·)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.errors import LucidError

CACHE_DTYPES = ("auto", "float16", "int8")  # auto: the model's type
LEVELS = 127  # largest int8 number used; −128 is not, so that the range is symmetric

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class CacheTensor:
    """One tensor of a layer's cache: the end of its name in the graphs, its type, and the length of its last axis."""

    suffix: str
    dtype: str
    width: int


def cache_tensors(cache_dtype: str, head_dim: int) -> tuple[CacheTensor, ...]:
    """Return the tensors of one layer, in order.

    Args:
        cache_dtype: ``int8``, or the float type that K and Y are stored in.
        head_dim: The model's head width.
    """
    rows = (CacheTensor("key", cache_dtype, head_dim), CacheTensor("value", cache_dtype, head_dim))
    if cache_dtype != "int8":
        return rows
    return (*rows, CacheTensor("key_scale", "float32", 1), CacheTensor("value_scale", "float32", 1))


def resolve_cache_dtype(requested: str, dtype: str) -> str:
    """Return the type that K and Y are stored in.

    Args:
        requested: One of :data:`CACHE_DTYPES`.
        dtype: The model's type.

    Raises:
        LucidError: An unknown type, or one that does not go with the model's.
    """
    if requested not in CACHE_DTYPES:
        raise LucidError(f"cache dtype must be {', '.join(CACHE_DTYPES)}, not {requested!r}.")
    if requested != "auto" and dtype == "bfloat16":
        raise LucidError(
            f"A bfloat16 model keeps its cache in bfloat16, not {requested}. Export with --cache-dtype auto, or with "
            "--dtype float32 or float16."
        )
    return dtype if requested == "auto" else requested


def encode_layer(k: Array, y: Array, cache_dtype: str) -> tuple[Array, ...]:
    """Bring K and Y ``(B, KV, T, D)`` into the form of the cache; bfloat16, unknown to numpy, stays float32."""
    if cache_dtype == "int8":
        (k_numbers, k_scale), (y_numbers, y_scale) = _to_int8(k), _to_int8(y)
        return k_numbers, y_numbers, k_scale, y_scale
    kind = np.float32 if cache_dtype == "bfloat16" else np.dtype(cache_dtype)
    return np.ascontiguousarray(k, dtype=kind), np.ascontiguousarray(y, dtype=kind)


def decode_layer(layer: tuple[Array, ...]) -> tuple[Array, Array]:
    """Return K and Y of a layer in the form of the cache: float32, or wider if they are."""
    if len(layer) == 4:
        k, y, k_scale, y_scale = layer
        return k * k_scale, y * y_scale
    k, y = (x.astype(np.float32) if x.dtype == np.float16 else x for x in layer)
    return k, y


def _to_int8(rows: Array) -> tuple[Array, Array]:
    rows = np.asarray(rows, dtype=np.float32)
    scale = np.abs(rows).max(axis=-1, keepdims=True, initial=0) / np.float32(LEVELS)  # (B, KV, T, 1)
    numbers = np.rint(rows / np.where(scale > 0, scale, 1))
    return np.clip(numbers, -LEVELS, LEVELS).astype(np.int8), scale
