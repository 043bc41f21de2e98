"""A decoder-only transformer with LUCID attention, the way the paper writes it.

    O = softmax(Q Kᵀ/√d, causal) · Y,      L Y = V,      L = tril(exp(K̂ K̂ᵀ/√d − √d))        (arXiv 2602.10410)

The rest is Llama. Parameter names are those of Hugging Face's ``LlamaForCausalLM``, so its checkpoints load as is.
What a layer has in the place of attention, and what it caches, is the file of its kind under
:mod:`lucid_deploy.model.layers`: ``lucid`` caches raw keys K and preconditioned values Y, ``standard`` keys and values.

Shapes: B batch, N new tokens, P cached tokens, T = P + N, H query heads, KV key/value heads, D head width, C hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import describe, layout_of
from lucid_deploy.model.layers import layer_kind
from lucid_deploy.model.mixer import LayerCache, Mixer, Step
from lucid_deploy.model.parts import MLP, Head, RMSNorm
from lucid_deploy.model.rope import rope_tables


class Layer(nn.Module):
    """One transformer layer: a mixer (attention) and an MLP, each after a norm and beside a residual."""

    def __init__(self, config: LucidConfig, index: int, implementation: str) -> None:
        super().__init__()
        kind = layer_kind(config.kinds[index])
        self._attribute = kind.attribute
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.add_module(kind.attribute, kind.mixer(config, index, implementation))
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    @property
    def mixer(self) -> Mixer:
        """What mixes tokens: attention, or what stands in its place."""
        mixer = self.get_submodule(self._attribute)
        assert isinstance(mixer, Mixer)
        return mixer

    def forward(self, x: Tensor, step: Step, past: LayerCache) -> tuple[Tensor, LayerCache]:
        """``(B, N, C)`` and the layer's cache to the same with the new tokens, see :class:`Mixer`."""
        mixed, present = self.mixer(self.input_layernorm(x), step, past)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), present


class LucidBody(nn.Module):
    """Embedding, layers, final norm: what Hugging Face calls ``model``."""

    def __init__(self, config: LucidConfig, implementation: str) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index, implementation) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


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
        for layer in self.layers():
            layer.mixer.store_cache_as(cache_dtype, self.model.embed_tokens.weight.dtype)
        return self

    def layers(self) -> list[Layer]:
        """Return the layers, first to last."""
        return [layer for layer in self.model.layers if isinstance(layer, Layer)]

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
            mask = static_mask(mask, self._rows(past), cache_length)
        x = self.model.embed_tokens(input_ids)  # (B, N, C)
        step = Step(mask, decode, self._rope(past, position_ids, x), cache_length)
        present = []
        for layer, layer_past in zip(self.model.layers, past, strict=True):
            x, layer_present = layer(x, step, layer_past)
            present.append(layer_present)
        if last_only and n > 1:
            x = last_token(x, step.mask)
        return self.lm_head(self.model.norm(x)), present

    def _rope(self, past: list[LayerCache], positions: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return cosine and sine for new tokens ``(B, N, C)``; None without rotary positions."""
        if not self.config.use_rope:
            return None
        if positions is None:
            batch, n, _ = x.shape
            positions = (self._rows(past).shape[2] + torch.arange(n, device=x.device)).expand(batch, n)
        return rope_tables(self.config, positions, x.dtype)

    def _rows(self, past: list[LayerCache]) -> Tensor:
        """Return a cached tensor that has a row for every column so far, ``(B, heads, P, width)``."""
        layout = layout_of(describe(self.config, self.cache_dtype if self.cache_dtype != "auto" else "float32"))
        pairs = (pair for layer, stored in zip(layout, past, strict=True) for pair in zip(layer, stored, strict=True))
        found = next((stored for tensor, stored in pairs if tensor.sort == "rows"), None)
        if found is None:
            raise ValueError("No layer caches a row for every token, so positions and mask must be given.")
        return found

    def empty_cache(self, batch: int) -> list[LayerCache]:
        """Return the cache before the first token: per layer the tensors of its layout, without rows."""
        return [layer.mixer.empty_cache(batch, self.model.embed_tokens.weight) for layer in self.layers()]


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
