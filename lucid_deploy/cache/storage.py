"""Describe the tensors that an attention layer caches, and convert their rows to and from the stored type in numpy.

- ``float32`` and other float types: the values, rounded to that type.
- ``int8``: integers −127 … 127, and for every row (token and head) a float32 scale in a separate tensor,
  ``{name}_scale``: the row's largest magnitude / 127. A value is its integer times the scale.
- ``fp8``: E4M3 numbers (ONNX's ``FLOAT8E4M3FN``, largest 448), with scales as for int8: the row's largest magnitude /
  448. numpy has no such type, so arrays hold the codes as uint8.

``lucid_deploy.cache.codecs`` does the same in PyTorch, and so do the graphs. A layer's tensors always have the order
of its layout: K, Y and, with int8 and fp8, the scales of K and of Y; all are ``(B, KV heads, T, ·)``.

If a value of a row is not finite, its scale is not either, so no value reads back as finite. A row so small that its
scale is 0 reads back as zeros. With a subnormal scale, rounded numbers could exceed the type's largest, so they are
clipped to it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lucid_deploy.cache.layout import Array, CacheLayout, CacheTensor, LayerLayout
from lucid_deploy.errors import LucidError

CACHE_DTYPES = ("auto", "float16", "int8", "fp8")  # auto: the model's type
SCALED = {"int8": "int8", "fp8": "float8_e4m3fn"}  # cache types with a scale for each row → dtype of their numbers
E4M3_MAX = 448.0
LEVELS = 127  # largest int8 number used; −128 is not used, so that the range is symmetric
SCALE = "_scale"  # suffix in the name of a tensor that holds the scales of another one


def cache_tensors(cache_dtype: str, heads: int, width: int) -> LayerLayout:
    """Return the tensors that an attention layer caches as ``int8``, ``fp8`` or the given float type."""
    names = ("key", "value")
    rows = tuple(CacheTensor(name, SCALED.get(cache_dtype, cache_dtype), (heads, width)) for name in names)
    if cache_dtype not in SCALED:
        return rows
    return (*rows, *(CacheTensor(name + SCALE, "float32", (heads, 1)) for name in names))


def decoded_layout(layer: LayerLayout) -> LayerLayout:
    """Return the layout of what ``decode_layer`` returns: all tensors except scales."""
    names = {tensor.name for tensor in layer}
    return tuple(tensor for tensor in layer if tensor.name.removesuffix(SCALE) not in names - {tensor.name})


def check_arrays(arrays: Sequence[Sequence[Array]], layout: CacheLayout, batch: int, tokens: int) -> None:
    """Raise a LucidError unless each layer's decoded arrays have the shapes of the cache layout."""
    if len(arrays) != len(layout):
        raise LucidError(f"The given cache is another model's: it has {len(arrays)} layers, this model {len(layout)}.")
    for index, (given, layer) in enumerate(zip(arrays, map(decoded_layout, layout), strict=True)):
        wanted = {tensor.name: tensor.batch_shape(batch, tokens) for tensor in layer}
        if len(given) != len(wanted):
            raise LucidError(
                f"Layer {index} of the given cache has {len(given)} tensors, this model caches {', '.join(wanted)}: "
                "the cache is another model's."
            )
        for (name, shape), array in zip(wanted.items(), given, strict=True):
            if array.shape != shape:
                raise LucidError(
                    f"{name} of layer {index} in the given cache has shape {array.shape}, but this model needs {shape} "
                    f"for {batch} rows of {tokens} tokens: the cache is another model's, or another text's."
                )


def resolve_cache_dtype(requested: str, dtype: str) -> str:
    """Return the type that K and Y are stored in, for ``auto`` the model's ``dtype``; LucidError if unsupported."""
    if requested not in CACHE_DTYPES:
        raise LucidError(f"cache dtype must be {', '.join(CACHE_DTYPES)}, not {requested!r}.")
    if requested not in ("auto", "fp8") and dtype == "bfloat16":
        raise LucidError(
            f"A bfloat16 model keeps its cache in bfloat16 or fp8, not {requested}. Export with --cache-dtype auto or "
            "fp8, or with --dtype float32 or float16."
        )
    return dtype if requested == "auto" else requested


def encode_layer(arrays: Sequence[Array], layer: LayerLayout) -> tuple[Array, ...]:
    """Convert a layer's tensors to their stored form; bfloat16, which numpy lacks, stays float32."""
    stored: dict[str, Array] = {}
    names = {tensor.name for tensor in layer}
    for tensor, array in zip(decoded_layout(layer), arrays, strict=True):
        if tensor.name + SCALE in names:
            encode = _to_int8 if tensor.dtype == "int8" else _to_fp8
            stored[tensor.name], stored[tensor.name + SCALE] = encode(array)
        else:
            kind = np.float32 if tensor.dtype == "bfloat16" else np.dtype(tensor.dtype)
            stored[tensor.name] = np.ascontiguousarray(array, dtype=kind)
    return tuple(stored[tensor.name] for tensor in layer)


def decode_layer(stored: Sequence[Array], layer: LayerLayout) -> tuple[Array, ...]:
    """Convert stored tensors back: apply scales and convert float16 to float32; other types stay as they are."""
    named = {tensor.name: array for tensor, array in zip(layer, stored, strict=True)}
    return tuple(_decoded(named, tensor.name) for tensor in decoded_layout(layer))


def _decoded(named: dict[str, Array], name: str) -> Array:
    if name + SCALE in named:
        numbers = _values_of_e4m3(named[name]) if named[name].dtype == np.uint8 else named[name]
        with np.errstate(invalid="ignore"):  # a row that is not finite
            return np.asarray(numbers * named[name + SCALE])
    array = named[name]
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _to_int8(rows: Array) -> tuple[Array, Array]:
    shares, scale = _scaled(rows, LEVELS)
    return np.clip(np.rint(shares), -LEVELS, LEVELS).astype(np.int8), scale


def _to_fp8(rows: Array) -> tuple[Array, Array]:
    import ml_dtypes  # comes with onnx

    shares, scale = _scaled(rows, E4M3_MAX)
    return np.clip(shares, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn).view(np.uint8), scale


def _values_of_e4m3(codes: Array) -> Array:
    import ml_dtypes

    return np.asarray(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))


def _scaled(rows: Array, largest: float) -> tuple[Array, Array]:
    rows = np.asarray(rows, dtype=np.float32)
    scale = np.abs(rows).max(axis=-1, keepdims=True, initial=0) / np.float32(largest)  # (B, KV, T, 1)
    with np.errstate(invalid="ignore"):  # a row that is not finite
        return rows / np.where(scale > 0, scale, 1), scale
