"""Graphs compiled by OpenVINO. Only this module imports it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from contextlib import suppress
from threading import Lock
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.cache.layout import Array
from lucid_deploy.errors import CheckFailed

if TYPE_CHECKING:
    import openvino


_DEVICE = "CPU"
# With this package, importing OpenVINO sends an event to Google Analytics and keeps an identifier in ~/intel.
_TELEMETRY = "openvino_telemetry"


def import_openvino() -> ModuleType:
    """Import OpenVINO with telemetry disabled, unless the program has already imported it or its telemetry package."""
    hidden = not {"openvino", _TELEMETRY} & sys.modules.keys()
    if hidden:
        sys.modules[_TELEMETRY] = cast(ModuleType, None)  # makes its import fail; OpenVINO then uses a stub
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]
    return openvino


@functools.cache
def core() -> openvino.Core:
    """Return the process's only Core.

    With a Core per session, the process crashed at the first signal after another thread had closed the last session
    (OpenVINO 2026.4): the thread that first compiles a graph gets a stack for signal handlers, which the Core frees.
    """
    found: openvino.Core = import_openvino().Core()
    return found


def compile_settings(threads: int | None) -> dict[str, Any]:
    """Return the settings for compiling graphs; ``threads`` None: OpenVINO chooses.

    The precision hint and the group size 0 keep OpenVINO from rounding values to bfloat16, where the processor has it,
    and inputs of quantized layers to 8 bits. Snippets, its compiler of elementwise operators, is off: in 2026.4.0 and
    2026.4.1 the third of three prompts of 33 to 64 tokens, each longer than the one before, got values of the last
    layer that were arbitrarily wrong, without an error. Snippets saves no time in these graphs.
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


def run_request(request: openvino.InferRequest, feed: Mapping[str, Any]) -> None:
    """Run a request once on the feed's arrays, without copying them; its tensors then hold the outputs.

    ``infer`` returns without an error when an operator cannot allocate memory (OpenVINO 2026.4.1), and leaves the
    outputs of an earlier run in the tensors. ``wait`` raises the error.
    """
    try:
        request.start_async(dict(feed), share_inputs=True)
        request.wait()
    except BaseException:
        with suppress(RuntimeError):
            request.wait()  # after Ctrl-C the request still reads the arrays
        raise


class CompiledGraph:
    """The compiled graph of one stage of an artifact; after a failed run it is compiled again."""

    def __init__(self, artifact: Artifact, stage: str, threads: int | None) -> None:
        self._path, self._settings = artifact.graph_path(stage), compile_settings(threads)
        self._outputs = [item.name for item in artifact.manifest.graphs[stage].outputs]
        self._lock = Lock()
        self._compile()

    def _compile(self) -> None:
        try:
            self._compiled: openvino.CompiledModel = core().compile_model(str(self._path), _DEVICE, self._settings)
        except RuntimeError as error:
            version, reason = import_openvino().__version__, _reason(str(error))
            raise CheckFailed(f"OpenVINO {version} cannot load {self._path}: {reason}") from error
        self._request = self._compiled.create_infer_request()
        self._failed = False

    def new_request(self) -> openvino.InferRequest:
        """Return another inference request, with tensors of its own."""
        if self._failed:
            self._compile()
        return self._compiled.create_infer_request()

    def run_request(self, request: openvino.InferRequest, feed: dict[str, Array]) -> None:
        """Run a request; if that fails, the graph is compiled again before the next run or new request."""
        try:
            run_request(request, feed)
        except RuntimeError:
            self._failed = True
            raise

    def run(self, feed: dict[str, Array]) -> list[Array]:
        """Run once; return the outputs in the manifest's order, each in memory of its own.

        A lock serializes threads: the request has one set of tensors, and OpenVINO would silently let another thread's
        run overwrite them before they are copied.
        """
        with self._lock:
            if self._failed:
                self._compile()
            self.run_request(self._request, feed)
            return [np.array(self._request.get_tensor(name).data) for name in self._outputs]


def _reason(message: str) -> str:
    """Join the lines of an error message, except those about OpenVINO's source; if there are no others, return all."""
    lines = [line.strip(" -\t") for line in message.splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "Summary"))]
    return "; ".join(telling) or message
