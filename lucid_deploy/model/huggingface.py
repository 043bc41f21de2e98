"""LUCID models for transformers' ``generate``: sampling, beam search, assisted decoding, streamers.

LUCID checkpoints have the model_type ``llama``: ``AutoModelForCausalLM`` silently loads them with standard attention,
which gives wrong results; load them with :class:`LucidForGeneration`. The cache is transformers' own, with raw keys K
and preconditioned values Y in place of keys and values. Rows of Y never change, so everything that generate does to
caches (reordering beams, cropping rejected tokens) is exact.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.description import describe

try:
    from transformers import DynamicCache, GenerationConfig, LlamaConfig, PreTrainedModel
    from transformers.generation import GenerationMixin
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError as error:
    raise missing_extra("transformers", "transformers", "use the model with generate") from error


class LucidGenerationConfig(LlamaConfig):
    """Llama's configuration with LUCID's model_type, so that nothing mistakes the model for standard attention."""

    model_type = "lucid"


class LucidForGeneration(PreTrainedModel, GenerationMixin):
    """A LUCID model with the interface of transformers' models. Create one with :meth:`from_checkpoint`."""

    config_class = LucidGenerationConfig
    main_input_name = "input_ids"
    _supports_cache_class = True

    def __init__(self, config: LucidGenerationConfig, model: torch.nn.Module) -> None:
        super().__init__(config)
        self.lucid = model

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        assume_unused: Collection[str] = (),
    ) -> LucidForGeneration:
        """Load a checkpoint, a directory or the word ``demo``; its parameters and cache are float32 by default."""
        source = Checkpoint(checkpoint, assume_unused)
        _check_caches(source)
        model = load_model(source, dtype, device)
        ours = source.config
        config = LucidGenerationConfig(
            **ours.llama_sizes(),
            bos_token_id=ours.bos_token_id,
            eos_token_id=list(ours.eos_token_ids) or None,
        )
        made = cls(config, model)
        made.generation_config = _generation_config(source, config)
        return made.eval()

    @property
    def device(self) -> torch.device:
        return self.lucid.model.embed_tokens.weight.device  # type: ignore[union-attr, return-value]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DynamicCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits ``(B, N or logits_to_keep, vocab)``, at least in float32, and add the new rows to the cache.

        Args:
            input_ids: New tokens, int64 ``(B, N)``.
            attention_mask: ``(B, P + N)``, 0 at padding; None: no padding.
            position_ids: Int64 ``(B, N)``; None: counted from the mask.
            cache: The cache of the P previous tokens, updated in place; None: P is 0.
            use_cache: Whether to return a new cache if none was given.
            logits_to_keep: The number of last tokens to return logits for; 0: all N.
        """
        batch, n = input_ids.shape
        past = None if cache is None or cache.get_seq_length() == 0 else _layers(cache)
        cached = 0 if past is None else past[0][0].shape[2]
        if cached + n > self.config.max_position_embeddings:
            raise LucidError(
                f"The context would be {cached + n} tokens, the model was made for "
                f"{self.config.max_position_embeddings} (max_position_embeddings)."
            )
        if attention_mask is None:
            attention_mask = torch.ones(batch, cached + n, dtype=torch.int64, device=input_ids.device)
        if position_ids is None:
            position_ids = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, cached:]  # (B, N)
        logits, present = self.lucid(
            input_ids, past, attention_mask, position_ids, decode=n == 1 and cached > 0, last_only=False
        )
        if cache is None and use_cache:
            cache = DynamicCache()
        if cache is not None:
            for layer, (k, y) in enumerate(present):
                cache.update(k[:, :, cached:], y[:, :, cached:], layer)
        return CausalLMOutputWithPast(logits=logits[:, -logits_to_keep:], cache=cache)


def _check_caches(source: Checkpoint) -> None:
    """Raise a LucidError for layers whose cache is not one row of keys and values per token."""
    for index, layer in enumerate(describe(source.config, "float32")):
        other = [tensor.name for tensor in layer.cache if tensor.sort != "rows"]
        if other:
            raise LucidError(
                f"{source.directory} cannot be used with transformers' generate: layer {index} is of kind {layer.kind},"
                f" whose cache {other[0]} does not have one row per token. Run it with lucid-deploy run."
            )


def _layers(cache: Any) -> list[tuple[Tensor, Tensor]]:
    return [(layer.keys, layer.values) for layer in cache.layers]


def _generation_config(source: Checkpoint, config: LucidGenerationConfig) -> GenerationConfig:
    """Return the checkpoint's generation_config.json, or defaults derived from its configuration."""
    if (source.directory / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(str(source.directory))
    return GenerationConfig.from_model_config(config)
