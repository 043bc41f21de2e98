"""What two benchmarks share: they time the library's matrix multiplication beside onnxruntime's own, in one graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.plugins.hosts.onnxruntime.build import build_ort_library

ort = import_onnxruntime()
LIBRARY, STANDARD = "library", "onnxruntime"
FACTOR, FLOOR = 3, {"float32": 2e-7, "float16": 5e-4}  # allowed: FACTOR · max(onnxruntime's error, FLOOR)
Array = np.ndarray[Any, Any]


def sessions(path: Path, use_library: Callable[[onnx.ModelProto], bool], threads: int) -> dict[str, Any]:
    """Return onnxruntime's sessions of a graph, by implementation.

    Args:
        path: The graph.
        use_library: Replaces a graph's multiplications by the library's, and returns whether it did.
        threads: Threads of each session.
    """
    found = {}
    for by in (LIBRARY, STANDARD):
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # as our sessions
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        model = onnx.load(path, load_external_data=False)
        if by == LIBRARY:
            assert use_library(model)
            options.register_custom_ops_library(str(build_ort_library()[0]))
        found[by] = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return found


def check(both: dict[str, Any], x: Array, exact: Array) -> dict[str, float]:
    """Return the errors of output ``product_0``, relative to its norm, by implementation.

    Raises:
        SystemExit: The library's error is too large, so nothing should be timed.
    """
    found = {by: each.run(["product_0"], {"x": x})[0].astype(np.float64) for by, each in both.items()}
    errors = {by: float(np.linalg.norm(got - exact) / np.linalg.norm(exact)) for by, got in found.items()}
    if errors[LIBRARY] > FACTOR * max(errors[STANDARD], FLOOR[str(x.dtype)]):
        raise SystemExit(f"{len(x)} rows, {x.dtype}: wrong numbers, nothing is timed: {errors}")
    return errors


def race(both: dict[str, Any], x: Array, rounds: int, threads: int) -> dict[str, list[float]]:
    """Run both in turn; return each round's seconds by implementation. All outputs but ``product_0`` are computed.

    With one thread, seconds are that thread's processor time, which other processes hardly change.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    outputs = [output.name for output in both[LIBRARY].get_outputs() if output.name != "product_0"]
    seconds: dict[str, list[float]] = {by: [] for by in both}
    for turn in range(rounds + 1):  # the first warms up
        for by in sorted(both, reverse=bool(turn % 2)):
            started = clock()
            both[by].run(outputs, {"x": x})
            if turn:
                seconds[by].append(clock() - started)
    return seconds
