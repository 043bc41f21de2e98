"""Which layers and artifacts can run several drafted tokens at once, and how many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.description import LayerDescription

if TYPE_CHECKING:
    import onnx

MOST = 16  # new tokens of one row in one call of Session.decode_several
STEP_TOKENS = 32  # of all rows of a batch together: beyond, a step costs as much as the tokens that it runs


class NoVerifyingGraph(Exception):
    """An artifact has no graph that verifies drafts; the text says why, as a sentence without an end."""


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


def verifying_graph(artifact: Artifact) -> onnx.ModelProto:
    """Return the graph that verifies drafts, made of an artifact's prefill graph, for onnxruntime.

    Args:
        artifact: Its layers have no :func:`layers_obstacle`.

    Raises:
        NoVerifyingGraph: It cannot be made.
    """
    from lucid_deploy.runtimes.several_tokens import NotAsExported, several_tokens

    manifest = artifact.manifest
    if manifest.inline:
        raise NoVerifyingGraph("graphs that export --inline wrote have no operators, of which the step is made")
    if manifest.cache == "static" and not artifact.writes_in_place:
        raise NoVerifyingGraph("a static cache of opset 23 is not written in place; export without --opset 23")
    try:
        return several_tokens(artifact.graph("prefill"), manifest.cache == "static")
    except NotAsExported as error:
        raise NoVerifyingGraph(
            f"the prefill graph is not as lucid-deploy export writes it ({error}); export it again"
        ) from error
