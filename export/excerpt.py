"""Which layers of a model a trace needs: equal layers are traced once or twice, whatever the model's depth."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.description import LayerDescription


@dataclass(frozen=True)
class Excerpt:
    """A shorter model whose graph has all that the whole model's graph repeats.

    Layers are equal when their descriptions and their rotation are. The first of each sort also computes what all
    layers share (masks, cosines), so it is no pattern for the others: a second one is. One more stands before the
    patterns, so that what a pattern reads from the layer before it is the residual stream and nothing else.

    Attributes:
        config: The shorter model.
        origins: For each of its layers, the layer of the whole model that it is.
        sources: For each layer of the whole model, the layer of the shorter one that it equals.
    """

    config: LucidConfig
    origins: tuple[int, ...]
    sources: tuple[int, ...]


def excerpt(config: LucidConfig, layers: tuple[LayerDescription, ...]) -> Excerpt | None:
    """Return the shorter model; None where it would not be shorter.

    Args:
        config: The whole model.
        layers: Its layers.
    """
    sorts: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        sorts.setdefault(f"{json.dumps(layer.to_dict())} {config.rope(index)}", []).append(index)
    repeated = [members for members in sorts.values() if len(members) > 1]
    origins = [members[0] for members in sorts.values()]
    first = {index: place for place, index in enumerate(origins)}
    patterns: dict[int, int] = {}  # by a sort's first layer
    for members in (*repeated[:1], *repeated):
        patterns[members[0]] = len(origins)
        origins.append(members[1])
    if len(origins) >= len(layers):
        return None
    sort_of = {index: members[0] for members in sorts.values() for index in members}
    shorter = dataclasses.replace(
        config,
        num_hidden_layers=len(origins),
        layer_kinds=tuple(config.kinds[index] for index in origins),
        rope_layers=tuple(config.rope_layers[index] for index in origins) if config.rope_layers else (),
    )
    sources = tuple(first.get(index, patterns.get(sort_of[index], -1)) for index in range(len(layers)))
    return Excerpt(shorter, tuple(origins), sources)
