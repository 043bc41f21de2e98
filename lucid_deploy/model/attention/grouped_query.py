"""The base class of attention layers: projections, rotary positions, and the cache of keys and values."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from lucid_deploy.cache.codecs import CacheCodec, codec_for
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.mixer import LayerCache, Mixer, Step
from lucid_deploy.model.parts import RMSNorm
from lucid_deploy.model.rope import rotate
from lucid_deploy.plugins.scatter_row.torch_operator import scatter_row


class GroupedQueryAttention(Mixer):
    """Grouped-query attention over cached keys and values; subclasses define which values are cached.

    In a transformers model class, this module has no projections: the class calls :meth:`mix` with its own.

    Attributes:
        sinks: Attention sinks ``(H,)``: one extra score per query head in the softmax; None: none. A transformers
            class that has sinks sets them before each call.

    Shapes: B batch, N new tokens, P cached tokens, T = P + N, H query heads, KV key/value heads, D head width, C hidden
    width, M rows of a static cache's buffers.
    """

    def __init__(self, config: LucidConfig, implementation: str) -> None:
        super().__init__()
        self.config, self.implementation = config, implementation
        self.codec = CacheCodec()
        self.sinks: Tensor | None = None
        if config.class_config:
            return
        heads, kv, d, bias = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.attention_bias,
        )
        self.q_proj = nn.Linear(config.hidden_size, heads * d, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv * d, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv * d, bias=bias)
        self.o_proj = nn.Linear(heads * d, config.hidden_size, bias=config.attention_output_bias)
        if config.qk_norm != "none":
            self.q_norm, self.k_norm = RMSNorm(d, config.rms_norm_eps), RMSNorm(d, config.rms_norm_eps)

    def forward(self, x: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        """Attend; return the output ``(B, N, C)`` and the updated cache, ``(B, KV, T or M, ·)`` each."""
        o, present = self.mix(*self.project(x, step), step, past)
        return self.o_proj(o.transpose(1, 2).reshape(*x.shape[:2], -1)), present

    def mix(self, q: Tensor, k: Tensor, v: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        """Compute attention for new tokens from their queries ``(B, H, N, D)``, keys and values ``(B, KV, N, D)``.

        Returns:
            The output ``(B, H, N, D)``, and the updated cache, ``(B, KV, T or M, ·)`` each.
        """
        if step.cache_length is not None and q.shape[2] == 1:
            return self.attend_static(q, k, v, past, step.mask, step.cache_length)
        k_past, y_past = self.codec.decode(past, q.dtype)  # (B, KV, P or M, D)
        keys = torch.cat([k_past, k], dim=2)  # (B, KV, P + N or M + N, D)
        o, y, values = self.attend(q, k, v, keys, k_past, y_past, step)
        present: LayerCache = (keys, values)
        stored = zip(past, self.codec.encode(k, y), strict=True)
        if step.cache_length is not None:  # draft tokens: attention read whole buffers, with unused rows masked
            present = tuple(scatter_row(buffer, rows, step.cache_length) for buffer, rows in stored)
        elif not self.codec.exact:
            present = tuple(self.codec.join(*rows) for rows in stored)  # (B, KV, T, ·) each
        return o, present

    def project(self, x: Tensor, step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries ``(B, H, N, D)``, keys and values ``(B, KV, N, D)`` of new tokens ``(B, N, C)``.

        Queries and keys are rotated, then normed, if the configuration says so; keys are cached in this form.
        """
        batch, n, _ = x.shape
        d = self.config.head_dim
        q = self.q_proj(x).view(batch, n, -1, d).transpose(1, 2)  # (B, H, N, D)
        k = self.k_proj(x).view(batch, n, -1, d).transpose(1, 2)  # (B, KV, N, D)
        v = self.v_proj(x).view(batch, n, -1, d).transpose(1, 2)  # (B, KV, N, D)
        if step.rope is not None:
            q, k = rotate(q, *step.rope), rotate(k, *step.rope)
        if self.config.qk_norm != "none":
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    @abstractmethod
    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, k_past: Tensor, y_past: Tensor, step: Step
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend over the past and the new tokens. Without a solve, Y is V. With a static cache, P is M.

        Args:
            q: Queries ``(B, H, N, D)``.
            k: New keys ``(B, KV, N, D)``.
            v: New values ``(B, KV, N, D)``.
            keys: Past and new keys ``(B, KV, T, D)``.
            k_past: Cached keys ``(B, KV, P, D)``.
            y_past: Cached Y ``(B, KV, P, D)``.
            step: The mask and the other arguments of this call.

        Returns:
            The output ``(B, H, N, D)``; the new tokens' Y ``(B, KV, N, D)``; the Y of all tokens ``(B, KV, T, D)``.
        """

    @abstractmethod
    def attend_static(
        self, q: Tensor, k: Tensor, v: Tensor, past: LayerCache, mask: Tensor | None, cache_length: Tensor
    ) -> tuple[Tensor, LayerCache]:
        """Attend with one new token per row over buffers ``(B, KV, M, ·)``, and write its key and value into them.

        An export traces this only with ``--cache static`` alone, or where the static graph cannot be derived from the
        growing one, as for standard attention over exact caches.

        Args:
            q: Queries ``(B, H, 1, D)``.
            k: Key of the new token ``(B, KV, 1, D)``.
            v: Value of the new token ``(B, KV, 1, D)``.
            past: The buffers.
            mask: Bool ``(B, M + 1)``: which rows of the buffers hold a token; the last column is the new token's.
            cache_length: Int64 ``(B,)``: the row to write.

        Returns:
            The output ``(B, H, 1, D)``, and the buffers with the new row.
        """

    def empty_cache(self, batch: int, like: Tensor) -> LayerCache:
        return self.codec.empty((batch, self.config.num_key_value_heads, 0, self.config.head_dim), like)

    def store_cache_as(self, cache_dtype: str, dtype: torch.dtype) -> None:
        self.codec = codec_for(cache_dtype, dtype)

    def decode_cache(self, stored: LayerCache, dtype: torch.dtype) -> LayerCache:
        return self.codec.decode(stored, dtype)

    def encode_cache(self, decoded: LayerCache) -> LayerCache:
        return self.codec.encode(*decoded)  # K and Y
