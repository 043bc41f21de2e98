"""A model in one line: what a configuration says, and what it says by leaving keys out."""

from __future__ import annotations

from collections import Counter

from lucid_deploy.model.config import LucidConfig, RopeScaling

_KINDS = {"lucid": "LUCID {layers}", "standard": "{layers} of standard attention"}


def summarize(config: LucidConfig) -> str:
    """Return attention, layers and positions in words, such as ``22 LUCID layers, no rotary positions``."""
    layers = " and ".join(_layers(kind, count) for kind, count in Counter(config.kinds).items())
    parts = [layers, _positions(config)]
    if config.qk_norm == "after_rope":
        parts.append("norms of queries and keys after rotation")
    return ", ".join(parts)


def _layers(kind: str, count: int) -> str:
    words = _KINDS.get(kind, f"{{layers}} of kind {kind}")
    return f"{count} {words.format(layers='layer' if count == 1 else 'layers')}"


def _positions(config: LucidConfig) -> str:
    if not config.use_rope:
        return "no rotary positions"
    scaling = "" if config.rope_scaling == RopeScaling() else f", {config.rope_scaling.rope_type} scaling by "
    factor = f"{config.rope_scaling.factor:g}" if scaling else ""
    return f"rotary positions (base {config.rope_theta:g}{scaling}{factor})"
