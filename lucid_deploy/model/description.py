"""Descriptions of layers: kind, operators, weights, and cached tensors. Imports no torch.

:func:`describe` derives them from a configuration; the manifest of an artifact records them. Graphs, sessions, batches,
files and verification use only these descriptions; :mod:`lucid_deploy.model.layers` defines the kinds of layers.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from lucid_deploy.cache.layout import CacheLayout, LayerLayout
from lucid_deploy.model.config import LucidConfig, RopeScaling
from lucid_deploy.model.layers import layer_kind
from lucid_deploy.plugins.table import EXPERT_MATMUL, TRAINING, UNIT

STAGES = ("prefill", "decode")


@dataclass(frozen=True)
class LayerDescription:
    """The properties of one layer that are known without running it."""

    kind: str  # the name of its kind, such as lucid
    cache: LayerLayout  # the cached tensors, in the order of the graphs' inputs
    # the operators of the domain ai.lucid in the layer's graph, by stage
    operators: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    # names of the weights its mixer reads, without the layer's prefix, such as self_attn.k_proj.weight
    weights: tuple[str, ...] = ()
    solves: bool = False  # whether its cached values are preconditioned by LUCID's triangular solve
    diagonal: str = UNIT  # if solves: the diagonal of the triangular system, as LucidConfig.diagonal
    # why the oldest tokens cannot be evicted from its cache, as the end of a sentence
    eviction: str = "what is cached for the later tokens was computed from them"

    def __post_init__(self) -> None:
        if len({tensor.name for tensor in self.cache}) != len(self.cache):
            raise ValueError(f"a layer of kind {self.kind!r} caches two tensors with the same name")

    def uses(self, operator: str, stage: str) -> bool:
        """Whether the layer uses an operator in the graph of a stage, ``prefill`` or ``decode``."""
        return operator in self.operators.get(stage, ())


def describe(config: LucidConfig, cache_dtype: str) -> tuple[LayerDescription, ...]:
    """Describe every layer of a model; ``cache_dtype``: ``int8``, ``fp8`` or a float type, such as the model's."""
    return tuple(_described(config, index, name, cache_dtype) for index, name in enumerate(config.kinds))


def _described(config: LucidConfig, index: int, kind: str, cache_dtype: str) -> LayerDescription:
    layer = layer_kind(kind).describe(config, index, cache_dtype)
    if config.experts_of(index) is None:
        return layer
    operators = {stage: (*layer.operators.get(stage, ()), EXPERT_MATMUL.name) for stage in STAGES}
    return dataclasses.replace(layer, operators=operators)


def drafts_unsupported_reason(layers: tuple[LayerDescription, ...]) -> str | None:
    """Return why such layers do not support draft tokens, as a clause without a full stop; None if they do.

    Verification writes all draft tokens into the cache; rejected ones must then be removed.
    """
    for index, layer in enumerate(layers):
        for tensor in layer.cache:
            if tensor.sort == "state":
                return (
                    f"layer {index} ({layer.kind}) keeps a state, {tensor.name}, into which every token is mixed, so "
                    "that rejected tokens cannot be removed"
                )
            if tensor.sort == "ring":
                return (
                    f"layer {index} ({layer.kind}) keeps only the last {tensor.window} tokens, and rejected tokens "
                    "have already evicted older ones"
                )
    return None


def layout_of(layers: tuple[LayerDescription, ...]) -> CacheLayout:
    """Return the cache layout of a model: for each layer, the tensors that it caches."""
    return tuple(layer.cache for layer in layers)


def summarize(config: LucidConfig) -> str:
    """Summarize attention, layers and positions, such as ``22 LUCID layers, no rotary positions``."""
    counts = Counter(config.kinds)
    layers = " and ".join(_layers(kind, counts[kind], config) for kind in dict.fromkeys(config.kinds))
    parts = [layers, _positions(config)]
    if found := sorted({own for own in map(config.experts_of, range(config.num_hidden_layers)) if own}):
        parts.insert(1, " and ".join(f"{chosen} of {count} experts for each token" for count, chosen in found))
    if config.qk_norm != "none":
        parts.append("norms of queries and keys after rotation")
    if config.diagonal == TRAINING:
        parts.append("training's diagonal of L")
    return ", ".join(parts)


def _layers(kind: str, count: int, config: LucidConfig) -> str:
    return f"{count} {layer_kind(kind).words(config).format('layer' if count == 1 else 'layers')}"


def _positions(config: LucidConfig) -> str:
    if config.class_config:
        return "positions of transformers' class"
    if not config.use_rope:
        return "no rotary positions"
    scaling = "" if config.rope_scaling == RopeScaling() else f", {config.rope_scaling.rope_type} scaling by "
    factor = f"{config.rope_scaling.factor:g}" if scaling else ""
    which = f" in {sum(config.rope_layers)} of them" if config.rope_layers else ""
    return f"rotary positions{which} (base {config.rope_theta:g}{scaling}{factor})"
