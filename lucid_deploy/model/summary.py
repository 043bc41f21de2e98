"""A model in one line: what a configuration says, and what it says by leaving keys out."""

from __future__ import annotations

from lucid_deploy.model.config import LucidConfig, RopeScaling


def summarize(config: LucidConfig) -> str:
    """Return attention, layers and positions in words, such as ``22 LUCID layers, no rotary positions``."""
    layers = "layer" if config.num_hidden_layers == 1 else "layers"
    kind = f"LUCID {layers}" if config.is_lucid else f"{layers} of standard attention"
    parts = [f"{config.num_hidden_layers} {kind}", _positions(config)]
    if config.qk_norm == "after_rope":
        parts.append("norms of queries and keys after rotation")
    return ", ".join(parts)


def _positions(config: LucidConfig) -> str:
    if not config.use_rope:
        return "no rotary positions"
    scaling = "" if config.rope_scaling == RopeScaling() else f", {config.rope_scaling.rope_type} scaling by "
    factor = f"{config.rope_scaling.factor:g}" if scaling else ""
    return f"rotary positions (base {config.rope_theta:g}{scaling}{factor})"
