"""A model in one line: what a configuration says, and what it says by leaving keys out."""

from __future__ import annotations

from collections import Counter

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.layers import layer_kind
from lucid_deploy.model.rope_settings import RopeScaling
from lucid_deploy.plugins.table import TRAINING


def summarize(config: LucidConfig) -> str:
    """Return attention, layers and positions in words, such as ``22 LUCID layers, no rotary positions``."""
    counts = Counter(config.kinds)
    layers = " and ".join(_layers(kind, counts[kind], config) for kind in dict.fromkeys(config.kinds))
    parts = [layers, _positions(config)]
    if config.qk_norm != "none":
        parts.append(f"norms of queries and keys {'after' if config.qk_norm == 'after_rope' else 'before'} rotation")
    if config.diagonal == TRAINING:
        parts.append("training's diagonal of L")
    return ", ".join(parts)


def _layers(kind: str, count: int, config: LucidConfig) -> str:
    return f"{count} {layer_kind(kind).words(config).format('layer' if count == 1 else 'layers')}"


def _positions(config: LucidConfig) -> str:
    if not config.use_rope:
        return "no rotary positions"
    scaling = "" if config.rope_scaling == RopeScaling() else f", {config.rope_scaling.rope_type} scaling by "
    factor = f"{config.rope_scaling.factor:g}" if scaling else ""
    local = "" if config.window_rope_theta is None else f", {config.window_rope_theta:g} over windows"
    bare = f" in {sum(config.rope_layers)} of them" if config.rope_layers else ""
    return f"rotary positions{bare} (base {config.rope_theta:g}{scaling}{factor}{local})"
