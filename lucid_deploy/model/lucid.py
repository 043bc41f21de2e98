"""A decoder-only transformer with LUCID attention, the way the paper writes it.

    O = softmax(Q Kᵀ/√d, causal) · Y,      L Y = V,      L = tril(exp(K̂ K̂ᵀ/√d − √d))        (arXiv 2602.10410)

The rest is Llama. Parameter names are those of Hugging Face's ``LlamaForCausalLM``, so its checkpoints load as is.
The cache of a layer is its raw keys K and preconditioned values Y; with ``attention_type: llama``, Y is V.

Shapes: B batch, N new tokens, P cached tokens, T = P + N, H query heads, KV key/value heads, D head width, C hidden.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lucid_deploy.plugins.hosts.triton.torch_kernels  # noqa: F401 (CUDA tensors take the Triton kernels)
from lucid_deploy.cache.codecs import CacheCodec, LayerCache, codec_for
from lucid_deploy.model.config import LucidConfig, RopeScaling
from lucid_deploy.plugins.causal_attention import causal_attention
from lucid_deploy.plugins.decode_attention import decode_attention
from lucid_deploy.plugins.precondition import precondition
from lucid_deploy.plugins.scatter_row import scatter_row
from lucid_deploy.plugins.shared.keys import compute_dtype


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight, computed in float32 for half-precision x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; same shape and type as ``x``."""
        if x.dtype in (torch.float32, torch.float64):
            return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), self.eps).to(x.dtype)


class LucidAttention(nn.Module):
    """Grouped-query attention whose values are preconditioned once per key/value head."""

    def __init__(self, config: LucidConfig, implementation: str) -> None:
        super().__init__()
        self.config, self.implementation = config, implementation
        self.codec = CacheCodec()
        self.decode_implementation = "reference" if implementation == "reference" else "fused"
        heads, kv, d, bias = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.attention_bias,
        )
        self.q_proj = nn.Linear(config.hidden_size, heads * d, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv * d, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv * d, bias=bias)
        self.o_proj = nn.Linear(heads * d, config.hidden_size, bias=bias)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        past: LayerCache,
        mask: Tensor | None,
        decode: bool,
        cache_length: Tensor | None = None,
    ) -> tuple[Tensor, LayerCache]:
        """Attend; return the output ``(B, N, C)`` and the cache with the new rows, each ``(B, KV, T, ·)``."""
        batch, n, _ = x.shape
        d, eps = self.config.head_dim, self.config.rms_norm_eps
        q = self.q_proj(x).view(batch, n, -1, d).transpose(1, 2)  # (B, H, N, D)
        k = self.k_proj(x).view(batch, n, -1, d).transpose(1, 2)  # (B, KV, N, D)
        v = self.v_proj(x).view(batch, n, -1, d).transpose(1, 2)  # (B, KV, N, D)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        if cache_length is not None:
            return self._decode_static(q, k, v, past, mask, cache_length)
        k_past, y_past = self.codec.decode(past, x.dtype)  # (B, KV, P, D)
        keys = torch.cat([k_past, k], dim=2)  # (B, KV, T, D)
        if self.config.is_lucid and decode:
            o, y = decode_attention(q, k, v, k_past, y_past, mask, eps, self.decode_implementation)
            values = torch.cat([y_past, y], dim=2)  # (B, KV, T, D)
        elif decode:
            y = v
            values = torch.cat([y_past, y], dim=2)  # (B, KV, T, D)
            o = attend_from_last(q, keys, values, mask)  # (B, H, 1, D)
        else:
            y = precondition(k, v, k_past, y_past, mask, eps, self.implementation) if self.config.is_lucid else v
            values = torch.cat([y_past, y], dim=2)  # (B, KV, T, D)
            o = causal_attention(q, keys, values, mask)  # (B, H, N, D)
        present: LayerCache = (keys, values)
        if not self.codec.exact:
            stored = zip(past, self.codec.encode(k, y), strict=True)
            present = tuple(torch.cat(rows, dim=2) for rows in stored)  # (B, KV, T, ·) each
        return self.o_proj(o.transpose(1, 2).reshape(batch, n, -1)), present

    def _decode_static(
        self, q: Tensor, k: Tensor, v: Tensor, past: LayerCache, mask: Tensor | None, cache_length: Tensor
    ) -> tuple[Tensor, LayerCache]:
        """One token per row over buffers ``(B, KV, M, ·)``; ``mask`` ``(B, M + 1)`` says which rows hold a token."""
        keys, values = self.codec.decode(past, q.dtype)  # (B, KV, M, D)
        if self.config.is_lucid:
            o, y = decode_attention(q, k, v, keys, values, mask, self.config.rms_norm_eps, self.decode_implementation)
        else:
            y = v
        stored = zip(past, self.codec.encode(k, y), strict=True)
        present = tuple(scatter_row(buffer, row, cache_length) for buffer, row in stored)
        if not self.config.is_lucid:
            assert mask is not None
            own = torch.arange(keys.shape[2], device=q.device) == cache_length[:, None]  # (B, M)
            if self.codec.exact:
                keys, values = present
            else:  # the new row as it is
                keys, values = scatter_row(keys, k, cache_length), scatter_row(values, v, cache_length)
            o = attend_from_last(q, keys, values, mask[:, :-1] | own)  # (B, H, 1, D)
        return self.o_proj(o.transpose(1, 2).reshape(q.shape[0], 1, -1)), present


def attend_from_last(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Standard attention of one token, ``(B, H, 1, D)``, over keys and values ``(B, KV, T, D)`` seen by ``(B, T)``."""
    mask = None if visible is None else visible[:, None, None, :]  # (B, 1, 1, T)
    work = compute_dtype(q.dtype)
    attended = F.scaled_dot_product_attention(q.to(work), k.to(work), v.to(work), attn_mask=mask, enable_gqa=True)
    return attended.to(q.dtype)


class MLP(nn.Module):
    """The gated feed-forward layer: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: LucidConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, N, C)`` to ``(B, N, C)``."""
        work = compute_dtype(x.dtype)  # silu holds an exponential
        product = F.silu(self.gate_proj(x).to(work)) * self.up_proj(x).to(work)  # (B, N, inner)
        return self.down_proj(product.to(x.dtype))


class Layer(nn.Module):
    """One transformer layer: attention and MLP, each after a norm and beside a residual."""

    def __init__(self, config: LucidConfig, implementation: str) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LucidAttention(config, implementation)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        past: LayerCache,
        mask: Tensor | None,
        decode: bool,
        cache_length: Tensor | None = None,
    ) -> tuple[Tensor, LayerCache]:
        """As :meth:`LucidAttention.forward`."""
        attended, present = self.self_attn(self.input_layernorm(x), rope, past, mask, decode, cache_length)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), present


class LucidBody(nn.Module):
    """Embedding, layers, final norm: what Hugging Face calls ``model``."""

    def __init__(self, config: LucidConfig, implementation: str) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, implementation) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Head(nn.Linear):
    """The product with the vocabulary: logits in float32, or in float64 in a float64 model.

    Attributes:
        in_float32: Whether the product of a half-precision model is taken in float32. Its logits are 10 or more in
            magnitude, so rounded to bfloat16 they are 1/16 apart, and the best ones tie. A quantized head has a
            product of the model's type, whose result is cast.
    """

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__(width, vocab_size, bias=False)
        self.in_float32 = True

    def forward(self, input: Tensor) -> Tensor:
        """``(…, width)`` of the model's type to ``(…, vocab)``."""
        if self.weight.dtype == torch.float64:
            return super().forward(input)
        if self.in_float32:
            return F.linear(input.float(), self.weight.float())
        return super().forward(input).float()


class LucidForCausalLM(nn.Module):
    """The whole model.

    Args:
        config: Its shape and variant.
        implementation: ``blocked`` (O(T) memory) or ``reference`` (dense formulas, for checking the other).

    The cache holds K and Y as they are; :meth:`store_cache_as` changes that.
    """

    def __init__(self, config: LucidConfig, implementation: str = "blocked") -> None:
        super().__init__()
        self.config, self.cache_dtype = config, "auto"
        self.model = LucidBody(config, implementation)
        self.lm_head = Head(config.hidden_size, config.vocab_size)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the head's weight the embedding, if the configuration says so; again after weights were assigned."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def store_cache_as(self, cache_dtype: str) -> LucidForCausalLM:
        """Keep K and Y in another type than the model's, see :mod:`lucid_deploy.cache.storage`; return the model.

        Args:
            cache_dtype: ``float16`` or ``int8``; the model's own type and ``auto`` store them as they are.
        """
        self.cache_dtype = cache_dtype
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            layer.self_attn.codec = codec_for(cache_dtype, self.model.embed_tokens.weight.dtype)
        return self

    def forward(
        self,
        input_ids: Tensor,
        past: list[LayerCache] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        decode: bool = False,
        last_only: bool = False,
        cache_length: Tensor | None = None,
    ) -> tuple[Tensor, list[LayerCache]]:
        """Compute logits and the cache of all tokens so far.

        Args:
            input_ids: New tokens, int64 ``(B, N)``.
            past: Per layer K and Y of the tokens before, each ``(B, KV, P, D)``, or their stored form; None is P = 0.
            attention_mask: ``(B, P + N)``, 0 at padding; None: no padding.
            position_ids: Rotary positions of the new tokens, int64 ``(B, N)``; None: P, P + 1, …
            decode: Take the single-token path, :mod:`~lucid_deploy.plugins.decode_attention`; needs N = 1.
            last_only: Compute logits of each row's last token alone.
            cache_length: Int64 ``(B,)``, for decoding with a static cache: ``past`` holds buffers ``(B, KV, M, D)``
                with so many tokens in them, ``attention_mask`` is ``(B, M)``, the new row is written behind the last.

        Returns:
            Logits ``(B, N, vocab)`` or, with ``last_only``, ``(B, 1, vocab)``, float32 (float64 in a float64 model),
            and the present cache, per layer two tensors ``(B, KV, P + N, D)``, or their stored form.
        """
        batch, n = input_ids.shape
        if past is None:
            past = self.empty_cache(batch)
        mask = None if attention_mask is None else attention_mask.bool()
        if cache_length is not None:
            mask = static_mask(mask, past[0][0], cache_length)
        x = self.model.embed_tokens(input_ids)  # (B, N, C)
        rope = None
        if self.config.use_rope:
            if position_ids is None:
                position_ids = (past[0][0].shape[2] + torch.arange(n, device=x.device)).expand(batch, n)
            rope = rope_tables(self.config, position_ids, x.dtype)
        present = []
        for layer, layer_past in zip(self.model.layers, past, strict=True):
            x, layer_present = layer(x, rope, layer_past, mask, decode, cache_length)
            present.append(layer_present)
        if last_only and n > 1:
            x = last_token(x, mask)
        return self.lm_head(self.model.norm(x)), present

    def empty_cache(self, batch: int) -> list[LayerCache]:
        """Return the cache before the first token: per layer two ``(B, KV, 0, D)``, or their stored form."""
        weight = self.model.embed_tokens.weight
        shape = (batch, self.config.num_key_value_heads, 0, self.config.head_dim)
        codec = codec_for(self.cache_dtype, weight.dtype)
        return [codec.empty(shape, weight) for _ in self.model.layers]


def static_mask(mask: Tensor | None, buffer: Tensor, cache_length: Tensor) -> Tensor:
    """Return which rows of a buffer ``(B, KV, M, D)`` hold a token, and True for the new one: bool ``(B, M + 1)``."""
    filled = torch.arange(buffer.shape[2], device=buffer.device) < cache_length[:, None]  # (B, M)
    if mask is not None:
        filled = filled & mask
    return torch.cat([filled, torch.ones_like(filled[:, :1])], dim=1)


def last_token(x: Tensor, mask: Tensor | None) -> Tensor:
    """Pick each row's last token that is not padding: ``(B, N, C)``, mask ``(B, P + N)`` to ``(B, 1, C)``."""
    n = x.shape[1]
    if mask is None:
        return x[:, n - 1 :]
    index = (mask[:, mask.shape[1] - n :] * torch.arange(n, device=x.device)).argmax(dim=1)  # (B,)
    return torch.gather(x, 1, index[:, None, None].expand(-1, 1, x.shape[2]))


def inverse_frequencies(config: LucidConfig) -> Tensor:
    """Return the rotary frequencies in radians per token, float32 ``(D/2,)``, scaled as the configuration says.

    Float32 in every model, since that is what checkpoints were trained with: a float64 model must rotate by the same
    angles. ``llama3`` scaling is that of Llama 3.1: wavelengths longer than the original context divided by
    ``low_freq_factor`` are stretched by ``factor``, those shorter than it divided by ``high_freq_factor`` are kept, and
    between them runs a linear ramp.
    """
    d, scaling = config.head_dim, config.rope_scaling
    frequencies = config.rope_theta ** -(torch.arange(0, d, 2, dtype=torch.float64, device="cpu") / d)
    if scaling.rope_type == "linear":
        frequencies = frequencies / scaling.factor
    elif scaling.rope_type == "llama3":
        frequencies = _llama3(frequencies, scaling)
    return frequencies.float()


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)  # over the original context
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0: divided by factor, 1: kept
    return frequencies * (keep + (1 - keep) / scaling.factor)


def rope_tables(config: LucidConfig, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cos and sin for rotary embedding, ``(B, 1, N, D/2)`` each, computed in float32 at least."""
    work = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = inverse_frequencies(config).to(dtype=work, device=position_ids.device)
    angles = position_ids.to(work)[:, None, :, None] * frequencies  # (B, 1, N, D/2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of each head, ``(B, H, N, D)``, in the tables' precision; result in the type of ``x``."""
    a, b = x.to(cos.dtype).chunk(2, dim=-1)  # (B, H, N, D/2) each
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
