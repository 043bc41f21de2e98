"""Run an artifact's inlined graphs with OpenVINO alone, as a client without this toolkit does.

    python run_openvino.py ARTIFACT CASE.npz

The case is that of ``run_graphs.py``. Prints a JSON object: the version and the largest relative error of a step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino

Array = np.ndarray[Any, np.dtype[Any]]
ROOM = 96  # tokens that a static cache's buffers hold
SETTINGS = {"INFERENCE_PRECISION_HINT": "f32", "SNIPPETS_MODE": "DISABLE", "INFERENCE_NUM_THREADS": 1}


def main(directory: Path, case: Path) -> None:
    """Feed the case and print what comes out."""
    stages = {
        stage: openvino.Core().compile_model(str(directory / f"{stage}.onnx"), "CPU", SETTINGS)
        for stage in ("prefill", "decode")
    }
    graphs = json.loads((directory / "lucid.json").read_text())["graphs"]
    names = [item["name"] for item in graphs["decode"]["outputs"]]
    with np.load(case) as given:
        ids, mask, chunks, wanted = given["ids"], given["mask"], given["chunks"].tolist(), given["logits"]
    batch, start, worst = len(ids), 0, 0.0
    static = any("cache_length" in item.names for item in stages["decode"].inputs)
    shapes = {item["name"].replace("past_key_values", "present"): item["shape"] for item in graphs["prefill"]["inputs"]}
    layers = {name: np.zeros(empty(shapes[name], batch), np.float32) for name in names if name != "logits"}
    for number, count in enumerate([*chunks, *[1] * (ids.shape[1] - sum(chunks))]):
        end, model = start + count, stages["prefill" if number < len(chunks) else "decode"]
        positions = np.maximum(np.cumsum(mask[:, :end], axis=1) - 1, 0)[:, start:end]
        feed = {"input_ids": ids[:, start:end], "position_ids": positions, "attention_mask": mask[:, :end]}
        if static and number >= len(chunks):
            feed |= {"cache_length": np.full(batch, start), "attention_mask": padded(mask[:, :start], 1)}
            layers = {name: padded(array, 2) for name, array in layers.items()}
        feed = {name: array.astype(np.int64) for name, array in feed.items()}
        feed |= {name.replace("present", "past_key_values"): array for name, array in layers.items()}
        result = model.create_infer_request().infer(feed)
        found = {name: np.array(result[model.output(name)]) for name in names}
        logits, layers = found.pop("logits")[:, -1].astype(np.float64), found
        error = np.linalg.norm(logits - wanted[:, number], axis=-1) / np.linalg.norm(wanted[:, number], axis=-1)
        worst, start = max(worst, float(np.where(np.isnan(error), np.inf, error).max())), end
    sys.stdout.write(json.dumps({"version": openvino.__version__, "error": worst}))


def empty(shape: list[int | str], batch: int) -> list[int]:
    """Return the shape of a cached tensor before the first token."""
    return [batch if axis == "batch" else axis if isinstance(axis, int) else 0 for axis in shape]


def padded(array: Array, axis: int) -> Array:
    """Bring cached rows, or their mask, into buffers with room; those that have it stay."""
    return np.pad(array, [(0, ROOM - array.shape[axis] if other == axis else 0) for other in range(array.ndim)])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
