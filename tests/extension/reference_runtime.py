"""A runtime as somebody outside of the project would write it: ONNX's ReferenceEvaluator, in numpy."""

from __future__ import annotations

from onnx.reference import ReferenceEvaluator

from lucid_deploy.artifact import STAGES, Artifact
from lucid_deploy.runtimes import Capabilities, Runtime, RuntimeOptions, Session
from lucid_deploy.runtimes.session import Array, Cache, NewTokens

Layers = list[tuple[Array, ...]]


class ReferenceSession(Session[Array]):
    """Runs both graphs of an artifact with a growing cache; the cache is numpy's arrays."""

    def __init__(self, artifact: Artifact, can: Capabilities, allow_extrapolation: bool) -> None:
        super().__init__(artifact.config, artifact.manifest.dtype, "reference", allow_extrapolation, can)
        self.identity = artifact.identity
        self._graphs = {stage: ReferenceEvaluator(str(artifact.graph_path(stage))) for stage in STAGES}

    def layer_arrays(self, cache: Cache[Array]) -> list[tuple[Array, Array]]:
        """See :meth:`Session.layer_arrays`."""
        return [(k, y) for k, y in cache.layers]

    def _layers_from_arrays(self, layers: list[tuple[Array, Array]]) -> Layers:
        return list(layers)

    def _run(self, stage: str, tokens: NewTokens, layers: Layers, keep: int) -> tuple[Array, Layers]:
        feed = tokens.feed()
        for index, (k, y) in enumerate(layers):
            feed |= {f"past_key_values.{index}.key": k, f"past_key_values.{index}.value": y}
        logits, *present = self._graphs[stage].run(None, feed)
        return logits, list(zip(present[::2], present[1::2], strict=True))


class ReferenceRuntime(Runtime):
    """See :class:`~lucid_deploy.runtimes.Runtime`."""

    name = "reference"
    description = "ONNX's own evaluator, in numpy: slow, and nobody's kernels."

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        """See :meth:`Runtime.capabilities`."""
        return Capabilities(packages=("onnx",), install="onnx")

    def open(self, artifact: Artifact, options: RuntimeOptions) -> ReferenceSession:
        """See :meth:`Runtime.open`."""
        return ReferenceSession(artifact, self.capabilities(options), options.allow_extrapolation)


RUNTIME = ReferenceRuntime()
