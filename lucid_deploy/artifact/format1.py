"""Manifests of format 1: what they leave out follows from the model, since there was one kind of cache."""

from __future__ import annotations

from typing import Any

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.cache.storage import cache_tensors
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DECODE_ATTENTION, PRECONDITION

_PROJECTIONS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
_LUCID = {"prefill": (PRECONDITION.name, CAUSAL_ATTENTION.name), "decode": (DECODE_ATTENTION.name,)}
_STANDARD = {"prefill": (CAUSAL_ATTENTION.name,)}


def recorded(config: LucidConfig, cache_dtype: str, quantization: Quantization | None) -> dict[str, Any]:
    """Return the fields that format 2 records: ``layers``, ``transposed`` and ``float32_head``."""
    layer = LayerDescription(
        kind="lucid" if config.is_lucid else "standard",
        cache=cache_tensors(cache_dtype, config.num_key_value_heads, config.head_dim),
        operators=_LUCID if config.is_lucid else _STANDARD,
        weights=tuple(f"self_attn.{name}.weight" for name in _PROJECTIONS["self_attn"]),
        solves=config.is_lucid,
    )
    quantized = set() if quantization is None else set(quantization.tensors)
    names = [
        f"model.layers.{index}.{part}.{name}.weight"
        for index in range(config.num_hidden_layers)
        for part, projections in _PROJECTIONS.items()
        for name in projections
    ]
    if not config.tie_word_embeddings:
        names.append("lm_head.weight")
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return {
        "layers": (layer,) * config.num_hidden_layers,
        "transposed": tuple(sorted(set(names) - quantized)),
        "float32_head": head not in quantized,
    }
