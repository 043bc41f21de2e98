"""One graph without functions in OpenVINO on the CPU, without an artifact around it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.runtimes.evaluated_graph import Graph
from lucid_deploy.runtimes.openvino.core import core, import_openvino, run_request
from lucid_deploy.runtimes.openvino.session import DEVICE, compile_settings
from lucid_deploy.runtimes.openvino.versions import check_version
from lucid_deploy.runtimes.options import RuntimeOptions

if TYPE_CHECKING:
    import onnx

Array = np.ndarray[Any, np.dtype[Any]]


def open_openvino_graph(model: onnx.ModelProto, options: RuntimeOptions) -> Graph:
    """See :meth:`~lucid_deploy.runtimes.runtime.Runtime.open_graph`."""
    openvino = import_openvino()
    check_version(openvino.__version__)
    read = core().read_model(model.SerializeToString())
    request = core().compile_model(read, DEVICE, compile_settings(options.thread_count)).create_infer_request()
    names = [output.name for output in model.graph.output]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        run_request(request, {name: np.ascontiguousarray(array) for name, array in feed.items()})
        return {name: np.array(request.get_tensor(name).data) for name in names}

    return run
