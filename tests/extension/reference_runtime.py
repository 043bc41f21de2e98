"""A runtime as somebody outside of the project would write it: ONNX's ReferenceEvaluator, in numpy."""

from __future__ import annotations

from onnx.reference import ReferenceEvaluator

from lucid_deploy.artifact import STAGES, Artifact
from lucid_deploy.runtimes import Capabilities, Runtime, RuntimeOptions, Session
from lucid_deploy.runtimes.session import Array, NewTokens

CachedLayers = list[tuple[Array, ...]]


class ReferenceSession(Session[Array]):
    """Runs both graphs of an artifact with a growing cache; the cache is numpy's arrays."""

    def __init__(self, artifact: Artifact, can: Capabilities, allow_extrapolation: bool) -> None:
        super().__init__(artifact.config, artifact.manifest.dtype, "reference", allow_extrapolation, can)
        self._graphs = {stage: ReferenceEvaluator(str(artifact.graph_path(stage))) for stage in STAGES}

    def _run(self, stage: str, tokens: NewTokens, layers: CachedLayers, keep: int) -> tuple[Array, CachedLayers]:
        feed = tokens.feed()
        for index, (k, y) in enumerate(layers):
            feed |= {f"past_key_values.{index}.key": k, f"past_key_values.{index}.value": y}
        logits, *present = self._graphs[stage].run(None, feed)
        return logits, list(zip(present[::2], present[1::2], strict=True))


class ReferenceRuntime(Runtime):
    """Opens artifacts in ONNX's ReferenceEvaluator."""

    name = "reference"
    description = "ONNX's own evaluator, in numpy: slow, without kernels."

    def capabilities(self, options: RuntimeOptions) -> Capabilities:
        return Capabilities(packages=("onnx",), install="onnx")

    def open(self, artifact: Artifact, options: RuntimeOptions) -> ReferenceSession:
        return ReferenceSession(artifact, self.capabilities(options), options.allow_extrapolation)


RUNTIME = ReferenceRuntime()
