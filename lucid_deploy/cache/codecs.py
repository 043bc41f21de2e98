"""How the PyTorch model stores K and Y; what an exported graph does too, since it is traced from here.

New rows see each other as they were computed and see what a call left behind as it is stored: the codec stands between
the calls, not within one. :mod:`lucid_deploy.cache.storage` describes the types.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lucid_deploy.cache.storage import LEVELS

LayerCache = tuple[Tensor, ...]  # K, Y and, with int8, their scales; each (B, KV, T, ·)


class CacheCodec:
    """K and Y as they are, in the model's type."""

    exact = True  # what is decoded is what was encoded

    def encode(self, k: Tensor, y: Tensor) -> LayerCache:
        """Bring rows of K and Y, ``(B, KV, N, D)``, into the stored form."""
        return k, y

    def decode(self, stored: LayerCache, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return stored rows as K and Y of a type, ``(B, KV, T, D)``."""
        k, y = stored
        return k, y

    def empty(self, shape: tuple[int, ...], like: Tensor) -> LayerCache:
        """Return a cache without tokens, for rows of K and of Y ``(B, KV, 0, D)``."""
        return self.encode(like.new_empty(shape), like.new_empty(shape))


class Float16Codec(CacheCodec):
    """K and Y rounded to float16."""

    exact = False

    def encode(self, k: Tensor, y: Tensor) -> LayerCache:
        """See :meth:`CacheCodec.encode`."""
        return k.to(torch.float16), y.to(torch.float16)

    def decode(self, stored: LayerCache, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See :meth:`CacheCodec.decode`."""
        k, y = stored
        return k.to(dtype), y.to(dtype)


class Int8Codec(CacheCodec):
    """Every row of a head as whole numbers −127 … 127 and one float32 scale, its largest magnitude over 127."""

    exact = False

    def encode(self, k: Tensor, y: Tensor) -> LayerCache:
        """See :meth:`CacheCodec.encode`; ``(B, KV, N, D)`` twice, then the scales ``(B, KV, N, 1)`` twice."""
        (k_numbers, k_scale), (y_numbers, y_scale) = _to_int8(k), _to_int8(y)
        return k_numbers, y_numbers, k_scale, y_scale

    def decode(self, stored: LayerCache, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See :meth:`CacheCodec.decode`."""
        k, y, k_scale, y_scale = stored
        work = torch.float64 if dtype == torch.float64 else torch.float32
        return (k.to(work) * k_scale).to(dtype), (y.to(work) * y_scale).to(dtype)


def _to_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    rows = rows.float()
    scale = rows.abs().amax(-1, keepdim=True) / LEVELS  # (B, KV, N, 1)
    numbers = torch.round(rows / torch.where(scale > 0, scale, 1.0))  # a row of zeros has the scale 0
    return numbers.clamp(-LEVELS, LEVELS).to(torch.int8), scale


def codec_for(cache_dtype: str, dtype: torch.dtype) -> CacheCodec:
    """Return the codec that stores a model of a type in a cache of another, or of the same."""
    if cache_dtype == "int8":
        return Int8Codec()
    if cache_dtype == "float16" and dtype != torch.float16:
        return Float16Codec()
    return CacheCodec()
