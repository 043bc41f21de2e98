"""Run a graph once with onnxruntime alone, as a client without this toolkit does.

    python run_operator.py GRAPH.onnx FEED.npz OUTPUTS.npz [OPTIMIZATION_LEVEL]

Prints the version of the runtime.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort


def main(graph: str, feed: str, outputs: str, level: str) -> None:
    """Feed the tensors and write what comes out."""
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    with np.load(feed) as given:
        found = session.run(names, dict(given))
    np.savez(outputs, **dict(zip(names, found, strict=True)))
    sys.stdout.write(ort.__version__)


if __name__ == "__main__":
    main(*sys.argv[1:4], sys.argv[4] if len(sys.argv) > 4 else "ENABLE_ALL")
