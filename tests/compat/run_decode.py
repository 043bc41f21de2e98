"""Run an artifact's decode graph with tract or tinygrad alone, as a client without this toolkit does.

    python run_decode.py RUNTIME ARTIFACT CASE.npz
    python run_decode.py RUNTIME ARTIFACT STAGE

The case is that of ``decode_case.py``. Prints a JSON object: the version, and the largest relative error of a step.
With the name of a stage, loads that graph and prints what the runtime says of it as ``refused``; empty if it loads.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[dict[str, Array]], dict[str, Array]]


def tract(path: Path) -> Run:
    """Load a graph into tract, which names outputs after their nodes, in the graph's order."""
    import tract

    model = tract.onnx().load(path)
    names = [model.input_name(place) for place in range(model.input_count())]
    caches = [name.replace("past_key_values", "present") for name in names if name.startswith("past")]
    runnable = model.into_model().into_runnable()

    def run(feed: dict[str, Array]) -> dict[str, Array]:
        found = runnable.run([np.ascontiguousarray(feed[name]) for name in names])
        return dict(zip(["logits", *caches], [tensor.to_numpy() for tensor in found], strict=True))

    return run


def tinygrad(path: Path) -> Run:
    """Load a graph into tinygrad, anew for each run: a runner keeps the sizes of its first one."""
    from tinygrad.nn.onnx import OnnxRunner

    runner = OnnxRunner(path)
    missing = {node.op for node in runner.graph_nodes} - set(runner.onnx_ops)
    if missing:
        raise NotImplementedError(f"no {', '.join(sorted(missing))}")

    def run(feed: dict[str, Array]) -> dict[str, Array]:
        return {name: tensor.numpy() for name, tensor in OnnxRunner(path)(feed).items()}

    return run


def decode(run: Run, case: Path) -> float:
    """Decode a case's tokens and return the largest relative error of a step's logits."""
    with np.load(case) as given:
        arrays = dict(given)
    ids, mask, positions, wanted = (arrays.pop(name) for name in ("ids", "mask", "positions", "logits"))
    worst, start = 0.0, ids.shape[1] - wanted.shape[1]
    for step in range(wanted.shape[1]):
        end = start + step + 1
        feed = {"input_ids": ids[:, end - 1 : end], "attention_mask": mask[:, :end]}
        found = run({**feed, "position_ids": positions[:, end - 1 : end], **arrays})
        arrays = {name: found[name.replace("past_key_values", "present")] for name in arrays}
        exact, logits = wanted[:, step], found["logits"][:, -1].astype(np.float64)
        error = np.linalg.norm(logits - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
        worst = max(worst, float(np.where(np.isnan(error), np.inf, error).max()))
    return worst


def main(runtime: str, directory: Path, what: str) -> dict[str, Any]:
    """Load or run, and return what is printed."""
    load = {"tract": tract, "tinygrad": tinygrad}[runtime]
    if what.endswith(".npz"):
        return {"version": version(runtime), "error": decode(load(directory / "decode.onnx"), Path(what))}
    try:
        load(directory / f"{what}.onnx")
    except Exception as error:  # noqa: BLE001 (what is printed)
        return {"version": version(runtime), "refused": f"{type(error).__name__}: {error}".split("Stack")[0]}
    return {"version": version(runtime), "refused": ""}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])))
