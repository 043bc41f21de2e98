"""Convert K and Y (with standard attention K and V) to the cache's type and back, in PyTorch and in traced graphs.

The new tokens of a call attend to each other's rows unrounded, and to rows of earlier calls as they were stored.
``lucid_deploy.cache.storage`` describes the types.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lucid_deploy.cache.storage import E4M3_MAX, LEVELS, SCALED

LayerCache = tuple[Tensor, ...]  # K, Y and, with int8 and fp8, their scales; each (B, KV heads, T, ·)


class CacheCodec:
    """Store K and Y as they are, in the model's type."""

    exact = True  # decoding returns exactly what was encoded

    def encode(self, k: Tensor, y: Tensor) -> LayerCache:
        """Convert rows of K and Y, ``(B, KV heads, N, D)``, to the stored form."""
        return k, y

    def decode(self, stored: LayerCache, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Convert stored rows back to K and Y in ``dtype``, ``(B, KV, T, D)`` each."""
        k, y = stored
        return k, y

    def join(self, past: Tensor, new: Tensor) -> Tensor:
        """Concatenate a tensor's cached rows and new ones, both in stored form: ``(B, KV, P + N, ·)``."""
        return torch.cat([past, new], dim=2)

    def empty(self, shape: tuple[int, ...], like: Tensor) -> LayerCache:
        """Return a cache without tokens; ``shape`` is that of K and of Y, ``(B, KV, 0, D)``."""
        return self.encode(like.new_empty(shape), like.new_empty(shape))


class Float16Codec(CacheCodec):
    """Store K and Y rounded to float16."""

    exact = False

    def encode(self, k: Tensor, y: Tensor) -> LayerCache:
        return k.to(torch.float16), y.to(torch.float16)

    def decode(self, stored: LayerCache, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        k, y = stored
        return k.to(dtype), y.to(dtype)


class ScaledCodec(CacheCodec):
    """Store each row of a head as 8-bit numbers and a float32 scale: the row's largest magnitude / ``largest``."""

    exact = False
    largest: float  # largest 8-bit number used

    def encode(self, k: Tensor, y: Tensor) -> LayerCache:
        # returns (B, KV, N, D) twice, then the scales (B, KV, N, 1) twice
        (k_numbers, k_scale), (y_numbers, y_scale) = self._scaled(k), self._scaled(y)
        return k_numbers, y_numbers, k_scale, y_scale

    def decode(self, stored: LayerCache, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        k, y, k_scale, y_scale = stored
        work = torch.float64 if dtype == torch.float64 else torch.float32
        return (k.to(work) * k_scale).to(dtype), (y.to(work) * y_scale).to(dtype)

    def _scaled(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.float()
        scale = rows.abs().amax(-1, keepdim=True) / self.largest  # (B, KV, N, 1)
        return self._round(rows / torch.where(scale > 0, scale, 1.0)), scale  # a row of zeros has the scale 0

    def _round(self, shares: Tensor) -> Tensor:
        """Round values to the nearest numbers of the 8-bit type, within ±``largest``."""
        raise NotImplementedError


class Int8Codec(ScaledCodec):
    """Store rows as integers −127 … 127."""

    largest = float(LEVELS)  # a float, because an int would add a node to the exported graph

    def _round(self, shares: Tensor) -> Tensor:
        return torch.round(shares).clamp(-self.largest, self.largest).to(torch.int8)


class Float8Codec(ScaledCodec):
    """Store rows as E4M3 numbers, −448 … 448."""

    largest = E4M3_MAX

    def join(self, past: Tensor, new: Tensor) -> Tensor:
        # ONNX cannot concatenate FP8, so concatenate in float16, which represents every E4M3 value exactly
        if past.dtype != torch.float8_e4m3fn:
            return super().join(past, new)
        return super().join(past.to(torch.float16), new.to(torch.float16)).to(torch.float8_e4m3fn)

    def _round(self, shares: Tensor) -> Tensor:
        return shares.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def codec_for(cache_dtype: str, dtype: torch.dtype) -> CacheCodec:
    """Return the codec for a cache in ``int8``, ``fp8``, ``float16``, or the model's own ``dtype`` (also ``auto``)."""
    if cache_dtype in SCALED:
        return {"int8": Int8Codec, "fp8": Float8Codec}[cache_dtype]()
    if cache_dtype == "float16" and dtype != torch.float16:
        return Float16Codec()
    return CacheCodec()
