"""Hugging Face's Llama with PyTorch's fused attention, behind the session interface, for benchmarks."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.runtimes.session import Array, NewTokens, Session
from lucid_deploy.runtimes.torch.threads import torch_threads

Layers = list[tuple[torch.Tensor, ...]]


class TransformersSession(Session[torch.Tensor]):
    """Standard attention of a configuration's shape, with random weights.

    Its cache is handed over layer by layer, without copies, in the form transformers itself uses.

    Args:
        config: Whose sizes it has.
        dtype: Type of its weights and arithmetic.
        threads: Threads within an operator, during runs of this session only; None: as PyTorch is set.
    """

    def __init__(self, config: LucidConfig, dtype: str, threads: int | None = None) -> None:
        super().__init__(config, dtype, "transformers", allow_extrapolation=True)
        self._threads = threads
        shape = LlamaConfig(**config.llama_sizes(), tie_word_embeddings=config.tie_word_embeddings)
        shape._attn_implementation = "sdpa"
        self._model = LlamaForCausalLM(shape).to(getattr(torch, dtype)).eval().requires_grad_(False)

    @property
    def model(self) -> LlamaForCausalLM:
        """The model that runs."""
        return self._model

    @property
    def prefill_chunk(self) -> int:
        """All of a prompt runs at once."""
        return sys.maxsize  # its attention has no fast form for part of a prompt

    def _to_array(self, tensor: CacheTensor, value: torch.Tensor) -> Array:
        return value.float().numpy()

    def _from_array(self, tensor: CacheTensor, array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(getattr(torch, self.dtype))

    def _run(self, stage: str, tokens: NewTokens, layers: Layers, keep: int) -> tuple[Array, Layers]:
        mask = tokens.mask
        past = DynamicCache()
        for index, (k, v) in enumerate(layers):
            if k.shape[2]:
                past.update(k, v, index)
        arguments: dict[str, Any] = {} if mask.all() else {"attention_mask": torch.from_numpy(mask.astype("int64"))}
        with torch_threads(self._threads), torch.inference_mode():
            out = self._model(
                torch.from_numpy(tokens.input_ids),
                past_key_values=past,
                position_ids=torch.from_numpy(tokens.positions.copy()),
                logits_to_keep=1,
                **arguments,
            )
        present: Layers = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return out.logits.float().numpy(), present
