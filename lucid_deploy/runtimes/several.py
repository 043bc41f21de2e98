"""Which layers can run several drafted tokens at once, and how many of them."""

from __future__ import annotations

from lucid_deploy.model.description import LayerDescription

MOST = 16  # new tokens of one call of Session.decode_several


def layers_obstacle(layers: tuple[LayerDescription, ...]) -> str | None:
    """Return why layers cannot take tokens back, as a sentence without an end; None if they can."""
    for index, layer in enumerate(layers):
        for tensor in layer.cache:
            if tensor.sort == "state":
                return (
                    f"layer {index} ({layer.kind}) keeps a state, {tensor.name}, into which every token is mixed, so "
                    "that rejected ones cannot be taken out again"
                )
            if tensor.sort == "ring":
                return (
                    f"layer {index} ({layer.kind}) keeps the last {tensor.window} tokens only, and rejected ones have "
                    "pushed others out"
                )
    return None
