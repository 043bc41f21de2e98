"""A decoder-only transformer with LUCID attention, by the paper's formulas.

    O = softmax(Q Kᵀ/√d, causal) · Y,      L Y = V,      L = tril(exp(K̂ K̂ᵀ/√d − √d))        (arXiv 2602.10410)

K̂ is K after an RMS norm. The rest is Llama, with the parameter names of Hugging Face's ``LlamaForCausalLM``, so that
its checkpoints load unchanged. The cache of each kind of layer is defined in :mod:`lucid_deploy.model.layers`:
``lucid`` layers cache raw keys K and preconditioned values Y, ``standard`` layers keys and values.

Shapes: B batch, N new tokens, P cached tokens, T = P + N, H query heads, KV key/value heads, D head width, C hidden.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn

import lucid_deploy.plugins.hosts.triton.torch_kernels  # noqa: F401 (CUDA tensors take the Triton kernels)
from lucid_deploy.model.block import Layer, make_layer
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import describe, layout_of
from lucid_deploy.model.mixer import LayerCache, Mixer, Step, layer_steps
from lucid_deploy.model.parts import Head, RMSNorm

LOGIT_ROWS = 64  # tokens per chunk of all_logits: with a vocabulary of 128k, a token has 1 MiB of float64 logits


class LucidBody(nn.Module):
    """Embedding, layers and final norm: ``model`` in Hugging Face's classes."""

    def __init__(self, config: LucidConfig, implementation: str) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = _table(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            make_layer(config, index, implementation) for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


def _table(rows: int, width: int) -> nn.Embedding:
    """Return an embedding, initialized except on the meta device, where that would import PyTorch's compiler."""
    table = nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
    if not table.weight.is_meta:
        table.reset_parameters()
    return table


class CausalModel(nn.Module):
    """The base class of all models, with this package's layers or with those of a transformers model class.

    Attributes:
        config: The configuration of the model.
        cache_dtype: Type of cached rows; ``auto`` is the model's.
        model: The module with the embedding, ``embed_tokens``, and the ``layers``.
        lm_head: The output projection.
    """

    model: nn.Module
    lm_head: Head

    def __init__(self, config: LucidConfig) -> None:
        super().__init__()
        self.config, self.cache_dtype = config, "auto"

    @property
    def embedding(self) -> Tensor:
        """The embedding's weight, which has the model's type and device."""
        weight: Tensor = self.model.embed_tokens.weight  # type: ignore[union-attr, assignment]
        return weight

    @abstractmethod
    def mixers(self) -> list[Mixer]:
        """Return the modules that mix tokens, one per layer."""

    def layers(self) -> list[nn.Module]:
        """Return the layers, first to last."""
        return list(self.model.layers)  # type: ignore[arg-type]

    def tie_weights(self) -> None:
        """Make the head share the embedding's weight if the two are tied; call it again after assigning weights."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight  # type: ignore[union-attr, assignment]

    def store_cache_as(self, cache_dtype: str) -> Self:
        """Set the type of cached rows, and return the model.

        ``float16``, ``int8``, ``fp8``: see :mod:`~lucid_deploy.cache.storage`; ``auto`` or the model's own type: exact.
        """
        self.cache_dtype = cache_dtype
        for mixer in self.mixers():
            mixer.store_cache_as(cache_dtype, self.embedding.dtype)
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
        """Compute logits and the updated cache.

        Args:
            input_ids: New tokens, int64 ``(B, N)``.
            past: The cached tensors of each layer, such as K and Y, ``(B, KV, P, D)``, in the type of the cache; None:
                P is 0.
            attention_mask: ``(B, P + N)``, 0 at padding; None: no padding.
            position_ids: Rotary positions of the new tokens, int64 ``(B, N)``; None: counted from P, or from
                ``cache_length``.
            decode: Use the path for one or a few new tokens, :mod:`~lucid_deploy.plugins.decode_attention`.
            last_only: Compute only the logits of each row's last token that is not padding.
            cache_length: Int64 ``(B,)``, for decoding with a static cache: the number of filled rows of the buffers in
                ``past``, ``(B, KV, M, D)``. New rows are written after these; ``attention_mask`` is ``(B, M)``.

        Returns:
            Logits ``(B, N, vocab)``, or ``(B, 1, vocab)`` with ``last_only``, in float32 (float64 in a float64 model);
            and the updated cache, in the form of ``past``.
        """
        batch, n = input_ids.shape
        fresh = past is None
        if past is None:
            past = self.empty_cache(batch)
        mask = None if attention_mask is None else attention_mask.bool()
        if cache_length is not None:
            mask = static_mask(mask, self._columns(past, None if mask is None else mask.shape[1]), cache_length, n)
        if position_ids is None and self.config.use_rope:
            start: int | Tensor = 0 if fresh else self._columns(past, None if mask is None else mask.shape[1] - n)
            if cache_length is not None:
                start = cache_length[:, None]
            position_ids = (start + torch.arange(n, device=input_ids.device)).expand(batch, n)
        return self.run(input_ids, position_ids, past, Step(mask, decode, None, cache_length), last_only)

    @abstractmethod
    def run(
        self, input_ids: Tensor, position_ids: Tensor | None, past: list[LayerCache], step: Step, last_only: bool
    ) -> tuple[Tensor, list[LayerCache]]:
        """Compute what :meth:`forward` returns; ``step`` has no rotary tables yet."""

    def all_logits(self, input_ids: Tensor) -> Iterator[Tensor]:
        """Yield the logits of all tokens of one sequence ``input_ids``, int64 ``(1, N)``, in chunks ``(n, vocab)``."""
        yield self(input_ids)[0][0]

    def _columns(self, past: list[LayerCache], masked: int | None) -> int:
        """Return the number of cached columns: the rows of a cached tensor, or ``masked`` if no layer caches rows."""
        layout = layout_of(describe(self.config, self.cache_dtype if self.cache_dtype != "auto" else "float32"))
        pairs = (pair for layer, stored in zip(layout, past, strict=True) for pair in zip(layer, stored, strict=True))
        rows = next((stored for tensor, stored in pairs if tensor.sort == "rows"), None)
        if rows is None and masked is None:
            raise ValueError("No layer caches a row for every token, so a mask must be given.")
        return masked if rows is None else rows.shape[2]  # type: ignore[return-value]

    def empty_cache(self, batch: int) -> list[LayerCache]:
        """Return the cache before the first token: each layer's tensors without rows, and states of zeros."""
        return [mixer.empty_cache(batch, self.embedding) for mixer in self.mixers()]


class LucidForCausalLM(CausalModel):
    """A model with this package's layers; its cache has the model's type unless :meth:`store_cache_as` changes it.

    ``implementation`` is ``blocked`` (O(T) memory) or ``reference`` (dense formulas, to verify ``blocked``).
    """

    model: LucidBody

    def __init__(self, config: LucidConfig, implementation: str = "blocked") -> None:
        super().__init__(config)
        self.model = LucidBody(config, implementation)
        self.lm_head = Head(config.hidden_size, config.vocab_size)
        self.tie_weights()

    def mixers(self) -> list[Mixer]:
        return [layer.mixer for layer in self.model.layers if isinstance(layer, Layer)]

    def run(
        self, input_ids: Tensor, position_ids: Tensor | None, past: list[LayerCache], step: Step, last_only: bool
    ) -> tuple[Tensor, list[LayerCache]]:
        x = self.model.embed_tokens(input_ids)  # (B, N, C)
        steps = layer_steps(self.config, position_ids, x.dtype, step.mask, step.decode, step.cache_length)
        present = []
        for layer, step_of_layer, layer_past in zip(self.model.layers, steps, past, strict=True):
            x, layer_present = layer(x, step_of_layer, layer_past)
            present.append(layer_present)
        if last_only and input_ids.shape[1] > 1:
            x = last_token(x, step.mask)
        return self.logits(x), present

    def all_logits(self, input_ids: Tensor) -> Iterator[Tensor]:
        body: list[Tensor] = []
        hook = self.model.layers[-1].register_forward_hook(lambda _, __, output: body.append(output[0][0]))
        try:
            self(input_ids, last_only=True)
        finally:
            hook.remove()
        yield from map(self.logits, body[0].split(LOGIT_ROWS))

    def logits(self, x: Tensor) -> Tensor:
        """Apply the final norm and the head to the last layer's output: ``(…, C)`` to ``(…, vocab)``."""
        return self.lm_head(self.model.norm(x))


def static_mask(mask: Tensor | None, rows: int, cache_length: Tensor, new: int = 1) -> Tensor:
    """Return which of a buffer's M rows hold tokens, followed by True for N new tokens: bool ``(B, M + N)``."""
    filled = torch.arange(rows, device=cache_length.device) < cache_length[:, None]  # (B, M)
    if mask is not None:
        filled = filled.logical_and(mask)
    return torch.cat([filled, filled.new_ones((filled.shape[0], new))], dim=1)


def last_token(x: Tensor, mask: Tensor | None) -> Tensor:
    """Select each row's last token that is not padding: ``(B, N, C)``, mask ``(B, P + N)`` to ``(B, 1, C)``."""
    batch, n, _ = x.shape
    if mask is None:
        return x[:, n - 1 :]
    new = mask[:, mask.shape[1] - n :].to(torch.int64)
    index = (new * torch.arange(n, device=x.device)).argmax(dim=1)  # (B,)
    # Indexing the rows of one matrix exports as Gather; runtimes restrict GatherElements.
    return x.reshape(batch * n, x.shape[2]).index_select(0, torch.arange(batch, device=x.device) * n + index)[:, None]
