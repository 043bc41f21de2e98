"""Kinds of attention layers: LUCID, standard and sliding-window attention."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from lucid_deploy.cache.layout import LayerLayout
from lucid_deploy.cache.storage import cache_tensors
from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription
from lucid_deploy.model.layers import LayerKind
from lucid_deploy.plugins.table import CAUSAL_ATTENTION, DECODE_ATTENTION, PRECONDITION

if TYPE_CHECKING:
    from lucid_deploy.model.mixer import Mixer

_QKV, _OUTPUT = ("q_proj", "k_proj", "v_proj"), "o_proj"


def rows_layout(config: LucidConfig, index: int, cache_dtype: str) -> LayerLayout:
    """Return the cache layout of an attention layer: rows of keys and values, and of their scales in int8 or fp8."""
    config = config.of_layer(index)
    return cache_tensors(cache_dtype, config.num_key_value_heads, config.head_dim)


def ring_layout(config: LucidConfig, index: int, cache_dtype: str) -> LayerLayout:
    """Return the cache layout of sliding-window attention: rings of the last W rows; raise a LucidError for fp8."""
    if cache_dtype == "fp8":  # a ring is updated with ONNX's Where, which takes no E4M3
        raise LucidError(
            "Sliding-window layers do not support a cache in fp8. Choose --cache-dtype int8, or auto for the model's "
            "type."
        )
    rows = rows_layout(config, index, cache_dtype)
    return tuple(
        dataclasses.replace(tensor, sort="ring", window=config.of_layer(index).sliding_window) for tensor in rows
    )


def projection_names(config: LucidConfig, index: int, attribute: str) -> tuple[str, ...]:
    """Return the weight names of attention within a layer: projections, and norms of queries and keys."""
    if config.attention:
        return config.attention[index].weights
    biased = {*(_QKV if config.attention_bias else ()), *((_OUTPUT,) if config.attention_output_bias else ())}
    names = [
        f"{name}.{part}"
        for name in (*_QKV, _OUTPUT)
        for part in ("weight", "bias")
        if part == "weight" or name in biased
    ]
    norms = ["q_norm.weight", "k_norm.weight"] if config.qk_norm != "none" else []
    return tuple(f"{attribute}.{name}" for name in (*names, *norms))


class _Lucid(LayerKind):
    """LUCID attention: the cache holds raw keys and preconditioned values."""

    name = "lucid"

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        return LayerDescription(
            kind=self.name,
            cache=rows_layout(config, index, cache_dtype),
            operators={"prefill": (PRECONDITION.name, CAUSAL_ATTENTION.name), "decode": (DECODE_ATTENTION.name,)},
            weights=projection_names(config, index, self.attribute),
            solves=True,
            diagonal=config.diagonal,
            eviction="with LUCID attention, Y of every later token was computed from their keys and values, so the "
            "remaining rows would not be the cache of the remaining text",
        )

    def words(self, config: LucidConfig) -> str:
        return "LUCID {}"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        from lucid_deploy.model.attention.lucid import LucidAttention

        return LucidAttention(config.of_layer(index), implementation)


class _Standard(LayerKind):
    """Standard softmax attention: the cache holds keys and values."""

    name = "standard"

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        # CAUSAL_ATTENTION computes neither a soft cap nor sinks.
        scored = config.of_layer(index).softcap is not None or (config.attention and config.attention[index].sinks)
        return LayerDescription(
            kind=self.name,
            cache=rows_layout(config, index, cache_dtype),
            operators={} if scored else {"prefill": (CAUSAL_ATTENTION.name,)},
            weights=projection_names(config, index, self.attribute),
            eviction="keys and values of the later tokens were computed from them",
        )

    def words(self, config: LucidConfig) -> str:
        return "{} of standard attention"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        from lucid_deploy.model.attention.standard import StandardAttention

        return StandardAttention(config.of_layer(index), implementation)


class _Window(LayerKind):
    """Sliding-window attention over the last W tokens: the cache is a ring of at most W rows."""

    name = "window"

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        return LayerDescription(
            kind=self.name,
            cache=ring_layout(config, index, cache_dtype),
            weights=projection_names(config, index, self.attribute),
            eviction="tokens before its window are already dropped",
        )

    def words(self, config: LucidConfig) -> str:
        windows = sorted({shape.window for shape in config.attention if shape.window})
        return f"{{}} over the last {' or '.join(map(str, windows)) or config.sliding_window} tokens"

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        from lucid_deploy.model.attention.window import WindowAttention

        return WindowAttention(config.of_layer(index), implementation)


LUCID, STANDARD, WINDOW = _Lucid(), _Standard(), _Window()
