"""Run an artifact's graphs with onnxruntime alone, as a client without this toolkit does.

    python run_graphs.py ARTIFACT CASE.npz [OPTIMIZATION_LEVEL]

The case holds the tokens of a batch, which of them are padding, how many are prefilled in each chunk, and the logits
that a float64 model gives. Prints a JSON object: the version of the runtime and the largest relative error of a step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

Array = np.ndarray[Any, np.dtype[Any]]
ROOM = 96  # tokens that a static cache's buffers hold


def main(directory: Path, case: Path, level: str) -> None:
    """Feed the case and print what comes out."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.intra_op_num_threads = 1
    stages = {}
    for stage in ("prefill", "decode"):
        path = str(directory / f"{stage}.onnx")
        stages[stage] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    with np.load(case) as given:
        worst = feed(stages, given["ids"], given["mask"].astype(bool), given["chunks"].tolist(), given["logits"])
    sys.stdout.write(json.dumps({"version": ort.__version__, "error": worst}))


def feed(stages: dict[str, Any], ids: Array, mask: Array, chunks: list[int], wanted: Array) -> float:
    """Prefill in chunks, decode the rest, and return the largest relative error of a step's logits."""
    batch, start, worst = len(ids), 0, 0.0
    static = any(item.name == "cache_length" for item in stages["decode"].get_inputs())
    cache = {
        item.name: np.zeros(
            [batch if axis == "batch" else axis if isinstance(axis, int) else 0 for axis in item.shape], "f4"
        )
        for item in stages["prefill"].get_inputs()
        if item.name.startswith("past_key_values.")
    }
    steps = [("prefill", count) for count in chunks] + [("decode", 1)] * (ids.shape[1] - sum(chunks))
    for number, (stage, count) in enumerate(steps):
        end = start + count
        positions = np.maximum(np.cumsum(mask[:, :end], axis=1) - 1, 0)[:, start:end]
        inputs: dict[str, Array] = {"input_ids": ids[:, start:end], "position_ids": positions.astype(np.int64)}
        whole = mask[:, :end].astype(np.int64)
        if stage == "decode" and static:
            inputs["cache_length"] = np.full(batch, start, np.int64)
            inputs["attention_mask"] = np.pad(whole[:, :start], ((0, 0), (0, ROOM - start)))
            cache = {name: padded(rows) for name, rows in cache.items()}
        else:
            inputs["attention_mask"] = whole
        session = stages[stage]
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(names, {**inputs, **cache}), strict=True))
        cache = {name.replace("present", "past_key_values"): found[name] for name in names if name != "logits"}
        logits = found["logits"][:, -1].astype(np.float64)
        error = np.linalg.norm(logits - wanted[:, number], axis=-1) / np.linalg.norm(wanted[:, number], axis=-1)
        worst, start = max(worst, float(np.where(np.isnan(error), np.inf, error).max())), end
    return worst


def padded(rows: Array) -> Array:
    """Bring cached rows into buffers with room; those that have it stay."""
    return np.pad(rows, ((0, 0), (0, 0), (0, ROOM - rows.shape[2]), (0, 0)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "ENABLE_ALL")
