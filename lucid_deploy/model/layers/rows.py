"""What kinds with projections of queries, keys and values have in common: rows in the cache, and names of weights."""

from __future__ import annotations

from lucid_deploy.cache.layout import LayerLayout
from lucid_deploy.cache.storage import cache_tensors
from lucid_deploy.model.config import LucidConfig

WEIGHTS = ("q_proj", "k_proj", "v_proj", "o_proj")


def rows_layout(config: LucidConfig, cache_dtype: str) -> LayerLayout:
    """Return the cache of an attention layer: a row of ``key`` and ``value`` for every token and key/value head."""
    return cache_tensors(cache_dtype, config.num_key_value_heads, config.head_dim)


def projection_names(config: LucidConfig, attribute: str) -> tuple[str, ...]:
    """Return the names of weights within a layer: projections, gate, and norms of queries and keys."""
    biased = {*(WEIGHTS[:3] if config.attention_bias else ()), *(WEIGHTS[3:] if config.has_output_bias else ())}
    gate = ("g_proj",) if config.attention_gate else ()
    biased |= set(gate) if config.attention_bias else set()
    names = [
        f"{name}.{part}"
        for name in (*WEIGHTS, *gate)
        for part in ("weight", "bias")
        if part == "weight" or name in biased
    ]
    norms = ["q_norm.weight", "k_norm.weight"] if config.qk_norm != "none" else []
    return tuple(f"{attribute}.{name}" for name in (*names, *norms))
