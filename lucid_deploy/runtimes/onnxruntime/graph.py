"""One graph in onnxruntime on the CPU, without an artifact around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.errors import LucidError
from lucid_deploy.ort import import_onnxruntime
from lucid_deploy.runtimes.evaluated_graph import Graph
from lucid_deploy.runtimes.onnxruntime.kernels import choose_kernels
from lucid_deploy.runtimes.options import RuntimeOptions

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, np.dtype[Any]]


def ort_value(array: Array, dtype: str | None = None) -> Any:
    """Return a tensor on the CPU that keeps an array, or a contiguous copy of it, and shares its memory.

    What ``numpy()`` of the tensor gives is that memory too: it must not outlive the tensor.
    """
    import onnx

    ort = import_onnxruntime()
    array = np.ascontiguousarray(array)
    if (dtype or array.dtype.name) == "float8_e4m3fn":
        kind = onnx.TensorProto.FLOAT8E4M3FN
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint8), kind)
    return ort.OrtValue.ortvalue_from_numpy(array)


def open_ort_graph(model: onnx.ModelProto, options: RuntimeOptions) -> Graph:
    """Return what runs a graph in onnxruntime on the CPU."""
    ort = import_onnxruntime()
    if options.provider != "cpu":
        raise LucidError("A single graph runs in onnxruntime on the CPU; leave --provider out.")
    library, settings = choose_kernels(options.kernels), ort.SessionOptions()
    settings.log_severity_level = 4
    if (threads := options.thread_count) is not None:
        settings.intra_op_num_threads = threads
    if library is not None:
        settings.register_custom_ops_library(str(library))
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        values = {name: ort_value(array) for name, array in feed.items()}
        found = session.run_with_ort_values(names, values)
        return {
            name: value.numpy().copy() for name, value in zip(names, found, strict=True)
        }  # may be an input's memory

    return run
