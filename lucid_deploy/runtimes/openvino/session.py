"""Sessions that run inlined graphs in OpenVINO. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lucid_deploy.artifact import STAGES, VERIFY, Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes.graph_sessions import ArrayLayers, ArtifactSession, BoundStep, StaticSession
from lucid_deploy.runtimes.openvino import CAPABILITIES
from lucid_deploy.runtimes.openvino.compiled_graph import CompiledGraph, import_openvino
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Array, NewTokens


class OpenVinoSession(ArtifactSession[Array]):
    """A session that runs an artifact's graphs; the cache consists of numpy arrays.

    Args:
        artifact: An artifact with inlined graphs.
        options: See :class:`~lucid_deploy.runtimes.options.RuntimeOptions`.
    """

    def __init__(self, artifact: Artifact, options: RuntimeOptions) -> None:
        if artifact.manifest.cache == "static" and artifact.writes_in_place:
            raise LucidError(
                f"OpenVINO cannot write into the static cache of {artifact.directory}: it has no operator "
                "TensorScatter. Export it with --opset 23."
            )
        super().__init__(artifact, "openvino", options.allow_extrapolation, CAPABILITIES)
        self._threads = options.thread_count
        self._graphs = {stage: CompiledGraph(artifact, stage, self._threads) for stage in STAGES}

    def prepare_several(self) -> None:
        super().prepare_several()
        if VERIFY not in self._graphs:
            self._graphs[VERIFY] = CompiledGraph(self._artifact, VERIFY, self._threads)

    def _run(self, stage: str, tokens: NewTokens, layers: ArrayLayers, keep: int) -> tuple[Array, ArrayLayers]:
        logits, *present = self._graphs[stage].run(tokens.feed() | self._named(layers))
        return logits, self._by_layer(present)


class StaticOpenVinoSession(StaticSession, OpenVinoSession):
    """An :class:`OpenVinoSession` for graphs with a static cache, exported with ``--opset 23``.

    OpenVINO writes to separate output arrays, from which new rows are copied into the caller's buffers.
    """

    def bind_arrays(
        self, inputs: dict[str, Array], layers: Sequence[tuple[Array, ...]], shared: bool = False
    ) -> tuple[Any, list[tuple[Array, Array]]]:
        openvino = import_openvino()
        request = self._graphs["decode"].new_request()
        for name, array in (inputs | self._named(list(layers))).items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        written: list[tuple[Array, Array]] = []  # buffer and output of every tensor of rows, (B, KV, M, ·)
        replaced: list[tuple[Array, Array]] = []
        tensors = [tensor for layout in self.layout for tensor in layout]
        for tensor, (name, buffer) in zip(tensors, self._named(list(layers), "present").items(), strict=True):
            output = np.empty_like(buffer)
            request.set_tensor(name, openvino.Tensor(output, shared_memory=True))
            (written if tensor.sort == "rows" else replaced).append((buffer, output))
        return (request, written, inputs["cache_length"]), replaced

    def run_bound(self, binding: BoundStep) -> Array:
        request, written, length = binding.binding
        try:
            self._graphs["decode"].run_request(request, {})
        except RuntimeError:
            self._bound = None  # the next step must be bound to the recompiled graph
            raise
        logits: Array = request.get_tensor("logits").data.copy()
        rows = np.arange(len(length))
        for buffer, output in written:
            buffer[rows, :, length] = output[rows, :, length]
        binding.copy_back()
        return logits
