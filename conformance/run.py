"""Run the cases of ``ai.lucid`` with onnxruntime: needs only numpy, onnx and onnxruntime, not lucid-deploy.

    python run.py [--cases FOLDER] [--library liblucid_onnxruntime.so] [--types float32,float16] [--only TEXT]

Prints a table. Exit status: 0 if all cases that were run passed, 1 if one failed or none was run, 2 for bad input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before the import starts telemetry; a user's value stays
import onnxruntime as ort


def relative_error(found: Any, wanted: Any) -> float:
    """Return the relative error (L2) of the batch row that is farthest off; infinite for NaN or another shape."""
    if found.shape != wanted.shape:
        return float("inf")
    found, wanted = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (found, wanted))
    difference, size = np.linalg.norm(found - wanted, axis=1), np.linalg.norm(wanted, axis=1)
    error = np.where(difference == 0, 0, difference / np.maximum(size, np.finfo(np.float64).tiny))
    return float(np.where(np.isnan(error), np.inf, error).max(initial=0))


def tensors(folder: Path, kind: str, items: Any) -> dict[str, Any]:
    """Return a data set's inputs or outputs, as ``kind`` says, by their names in the graph."""
    paths = [folder / f"{kind}_{place}.pb" for place in range(len(items))]
    read = [onnx.numpy_helper.to_array(onnx.load_tensor(path)) for path in paths]
    return {item.name: array for item, array in zip(items, read, strict=True)}


def run(folder: Path, tolerances: dict[str, float], library: str | None) -> tuple[bool, str]:
    """Run a case; return whether it passed, and what to print."""
    graph = onnx.load(folder / "model.onnx").graph
    count = max(1, len([*folder.glob("test_data_set_*")]))
    folders = [folder / f"test_data_set_{number}" for number in range(count)]
    sets = [(tensors(each, "input", graph.input), tensors(each, "output", graph.output)) for each in folders]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if library is not None:
        options.register_custom_ops_library(library)
    try:
        session = ort.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        found = [session.run(list(wanted), inputs) for inputs, wanted in sets]
    except Exception as error:  # noqa: BLE001 (a runtime's own, of any class)
        return False, " ".join(str(error).split())[:150]
    errors = {name: 0.0 for name in tolerances}
    for outputs, (_, wanted) in zip(found, sets, strict=True):
        for name, output in zip(wanted, outputs, strict=True):
            errors[name] = max(errors[name], relative_error(output, wanted[name]))
    worst = max(errors, key=lambda name: errors[name] / max(tolerances[name], 1e-300))
    passed = all(errors[name] <= tolerances[name] for name in errors)
    return passed, f"{worst} {errors[worst]:.1e} of {tolerances[worst]:.1e}"


def main() -> int:
    """Run all cases and return the exit status."""
    parser = argparse.ArgumentParser(description="Run the cases of conformance with onnxruntime.")
    folder = Path(__file__).parent / "cases"
    parser.add_argument(
        "--cases",
        type=Path,
        default=folder,
        help="the folder of cases; lucid-deploy conformance --write FOLDER makes it",
    )
    parser.add_argument("--library", help="a library of custom operators to register")
    parser.add_argument("--types", default="float32,float16", help="cases in other types are not run")
    parser.add_argument("--only", default="", help="run the cases with this text in their names")
    chosen = parser.parse_args()
    cases = sorted(path for path in chosen.cases.glob("*/case.json") if chosen.only in path.parent.name)
    if not cases:
        sys.stderr.write(f"{chosen.cases} has no such cases. To make them: lucid-deploy conformance --write FOLDER\n")
        return 2
    counts = {"passed": 0, "FAILED": 0, "not run": 0}
    for path in cases:
        try:
            case = json.loads(path.read_bytes())
            kinds = {kind for kind in case["types"] if "float" in kind}
            status, text = "not run", f"in {case['type']}"
            if kinds <= set(chosen.types.split(",")):
                tolerances = {output["name"]: float(output["tolerance"]) for output in case["outputs"]}
                passed, text = run(path.parent, tolerances, chosen.library)
                status = "passed" if passed else "FAILED"
        except Exception as error:  # noqa: BLE001 (whatever is wrong with the files)
            text = " ".join(str(error).split())[:500]
            sys.stderr.write(f"{path.parent} cannot be read: {type(error).__name__}: {text}\n")
            return 2
        counts[status] += 1
        sys.stdout.write(f"{path.parent.name:44} {status:8} {text}\n")
    sys.stdout.write(", ".join(f"{count} {status}" for status, count in counts.items()) + "\n")
    return 1 if counts["FAILED"] or not counts["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
