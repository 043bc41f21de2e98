"""Plain and wrong kernels run a case's graph, as a runtime would, in ONNX's ReferenceEvaluator."""

from __future__ import annotations

import numpy as np

from lucid_deploy.conformance.case_files import Case
from lucid_deploy.conformance.compare import relative_error
from lucid_deploy.conformance.formulas import Array
from lucid_deploy.conformance.plain import PlainKernels
from lucid_deploy.runtimes.evaluated_graph import evaluated_graph


def run_kernels(case: Case, kernels: type[PlainKernels]) -> dict[str, float]:
    """Run a case.

    Returns:
        The outputs that are off by more than they may be, and by how much.
    """
    computing = kernels(case.description.type)
    graph, errors = evaluated_graph(case.model, computing.operators()), dict.fromkeys(case.outputs, 0.0)
    for data in case.data_sets:
        with np.errstate(all="ignore"):  # wrong kernels overflow, and what comes out is then found to be wrong
            found = graph(data.inputs)
        found = {name: _as_cached(name, array, computing) for name, array in found.items()}
        errors = {name: max(errors[name], relative_error(found[name], wanted)) for name, wanted in data.outputs.items()}
    return {
        item.name: errors[item.name] for item in case.description.outputs if not errors[item.name] <= item.tolerance
    }


def _as_cached(name: str, array: Array, kernels: PlainKernels) -> Array:
    if not (name.startswith("present.") and name.endswith(".key")):
        return array
    return np.asarray(kernels.cached_keys(array.astype(np.float32)))
