"""The inlined graphs in OpenVINO, behind the session interface. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact import STAGES, VERIFY, Artifact
from lucid_deploy.cache.layout import first_tokens
from lucid_deploy.cache.storage import decode_layer, encode_layer
from lucid_deploy.errors import CheckFailed
from lucid_deploy.runtimes.evaluated_graph import Graph
from lucid_deploy.runtimes.openvino.capabilities import CAPABILITIES
from lucid_deploy.runtimes.openvino.core import check_operators, check_version, core, import_openvino, run_request
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Array, Cache, NewTokens, Session

if TYPE_CHECKING:
    import onnx
    import openvino


def open_openvino_graph(model: onnx.ModelProto, options: RuntimeOptions) -> Graph:
    """Return what runs a graph without functions in OpenVINO on the CPU."""
    openvino = import_openvino()
    check_version(openvino.__version__)
    read = core().read_model(model.SerializeToString())
    request = core().compile_model(read, DEVICE, compile_settings(options.thread_count)).create_infer_request()
    names = [output.name for output in model.graph.output]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        run_request(request, {name: np.ascontiguousarray(array) for name, array in feed.items()})
        return {name: np.array(request.get_tensor(name).data) for name in names}

    return run


Layers = list[tuple[Array, ...]]
DEVICE = "CPU"


class OpenVinoSession(Session[Array]):
    """Runs an artifact's prefill and decode graphs; the cache is numpy arrays.

    Args:
        artifact: An artifact whose graphs have no functions.
        options: See :class:`~lucid_deploy.runtimes.options.RuntimeOptions`.

    Raises:
        LucidError: A version that does not run the graphs, or graphs with an operator that OpenVINO does not have.
        CheckFailed: OpenVINO cannot load a graph.
    """

    def __init__(self, artifact: Artifact, options: RuntimeOptions) -> None:
        openvino = import_openvino()
        check_version(openvino.__version__)
        check_operators(artifact)
        manifest = artifact.manifest
        super().__init__(
            artifact.config,
            manifest.dtype,
            "openvino",
            options.allow_extrapolation,
            CAPABILITIES,
            manifest.cache_dtype,
            manifest.layers,
        )
        self.identity = artifact.identity
        self._all_logits = manifest.logits == "all"
        self._artifact, self._threads = artifact, options.thread_count
        self._graphs = {stage: _Graph(artifact, stage, self._threads) for stage in STAGES}

    def layer_arrays(self, cache: Cache[Array]) -> list[tuple[Array, ...]]:
        return [decode_layer(layer, layout) for layout, layer in zip(self.layout, cache.layers, strict=True)]

    def _layers_from_arrays(self, layers: list[tuple[Array, ...]]) -> Layers:
        return [encode_layer(arrays, layout) for layout, arrays in zip(self.layout, layers, strict=True)]

    def _first_tokens(self, cache: Cache[Array], length: int) -> Layers:
        return [
            tuple(
                np.ascontiguousarray(first_tokens(t, x, length, cache.mask)) for t, x in zip(layout, layer, strict=True)
            )
            for layout, layer in zip(self.layout, cache.layers, strict=True)
        ]

    @property
    def gives_all_logits(self) -> bool:
        return self._all_logits

    @property
    def multi_token_unsupported_reason(self) -> str | None:
        return self._artifact.drafts_unsupported_reason

    def prepare_several(self) -> None:
        super().prepare_several()
        if VERIFY not in self._graphs:
            self._graphs[VERIFY] = _Graph(self._artifact, VERIFY, self._threads)

    def _run(self, stage: str, tokens: NewTokens, layers: Layers, keep: int) -> tuple[Array, Layers]:
        feed = tokens.feed()
        for index, (layout, layer) in enumerate(zip(self.layout, layers, strict=True)):
            feed |= {f"past_key_values.{index}.{t.name}": array for t, array in zip(layout, layer, strict=True)}
        logits, *present = self._graphs[stage].run(feed)
        rest = iter(present)
        return logits, [tuple(next(rest) for _ in layout) for layout in self.layout]


def compile_settings(threads: int | None) -> dict[str, Any]:
    """Return how graphs are compiled.

    The hints and groups keep OpenVINO from rounding to bfloat16, which it does where the processor has that, and the
    inputs of quantized products to 8 bits. Snippets, its compiler of elementwise operators, are off: in 2026.4.0 and
    2026.4.1 a third prompt of 33 to 64 tokens, each longer than the one before, got values of the last layer that were
    wrong by any factor, without an error. They save no time in these graphs.
    """
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "PERFORMANCE_HINT": "LATENCY",
        "SNIPPETS_MODE": "DISABLE",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return settings


class _Graph:
    """One compiled graph."""

    def __init__(self, artifact: Artifact, stage: str, threads: int | None) -> None:
        self._path, self._settings = artifact.graph_path(stage), compile_settings(threads)
        self._outputs = [item.name for item in artifact.manifest.graphs[stage].outputs]
        self._lock = Lock()
        self._compile()

    def _compile(self) -> None:
        try:
            self._compiled: openvino.CompiledModel = core().compile_model(str(self._path), DEVICE, self._settings)
        except RuntimeError as error:
            version, reason = import_openvino().__version__, _reason(str(error))
            raise CheckFailed(f"OpenVINO {version} cannot load {self._path}: {reason}") from error
        self._request = self._compiled.create_infer_request()
        self._failed = False

    def new_request(self) -> openvino.InferRequest:
        """Return another request, with tensors of its own."""
        if self._failed:
            self._compile()
        return self._compiled.create_infer_request()

    def run_request(self, request: openvino.InferRequest, feed: dict[str, Array]) -> None:
        # After a failure requests have to be made anew: the graph is compiled again
        try:
            run_request(request, feed)
        except RuntimeError:
            self._failed = True
            raise

    def run(self, feed: dict[str, Array]) -> list[Array]:
        """Run once; return the outputs in the manifest's order, each memory of its own.

        Threads take turns: the request has one set of tensors, and OpenVINO lets another thread's run write them before
        they are copied, without an error.
        """
        with self._lock:
            if self._failed:
                self._compile()
            self.run_request(self._request, feed)
            return [np.array(self._request.get_tensor(name).data) for name in self._outputs]


def _reason(message: str) -> str:
    """Return what an error says in one line, without the places in OpenVINO's sources."""
    lines = [line.strip(" -\t") for line in message.splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "Summary"))]
    return "; ".join(said) or message
