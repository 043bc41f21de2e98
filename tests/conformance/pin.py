"""Write ``conformance/pinned.json``: ``python -m tests.conformance.pin``, after an intended change of the cases.

A tolerance is a multiple of the error of a plain implementation in the case's type. A case that none of the wrong
kernels fails is refused.
"""

from __future__ import annotations

import dataclasses

import msgspec
import numpy as np

from lucid_deploy.conformance.case_files import Case, Output
from lucid_deploy.conformance.cases import (
    FACTOR,
    FLOOR,
    PINNED,
    Pin,
    case_names,
    checksums,
    model_weights,
    pinned,
    unpinned_case,
)
from lucid_deploy.conformance.formulas import Array
from lucid_deploy.conformance.problems import NUMPY, single
from lucid_deploy.conformance.runner import relative_error
from lucid_deploy.conformance.tiny_model import MODEL_PROBLEMS, Arithmetic, run_model
from lucid_deploy.plugins.table import SCATTER_ROW
from tests.conformance.evaluator import evaluated_graph
from tests.conformance.plain_kernels import PlainKernels
from tests.conformance.wrong_kernels import WRONG


def main() -> None:
    """Pin every case, a line each."""
    pins = {name: pin(unpinned_case(name), pinned().get(name)) for name in case_names()}
    lines = [
        f"{msgspec.json.encode(name).decode()}: {msgspec.json.encode(each).decode()}" for name, each in pins.items()
    ]
    PINNED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def pin(case: Case, before: Pin | None) -> Pin:
    """Return a case's tolerances and checksums; ValueError if no wrong kernel fails the case.

    The order of sums, and with it a baseline, differs between processors: a tolerance from before stays if it is at
    most four times too large or too small.
    """
    kind = case.description.type
    factor, floor = (0.0, 0.0) if case.description.operator == SCATTER_ROW.name else (FACTOR[kind], FLOOR[kind])
    baselines = plain_model_errors(case) if case.description.operator == "model" else kernel_errors(case, PlainKernels)
    outputs = [Output(name, _rounded(factor * max(error, floor)), _rounded(error)) for name, error in baselines.items()]
    if before is not None and len(before.outputs) == len(outputs):
        pairs = zip(before.outputs, outputs, strict=True)
        outputs = [old if new.tolerance / 4 <= old.tolerance <= 4 * new.tolerance else new for old, new in pairs]
    with_tolerances = dataclasses.replace(case, description=msgspec.structs.replace(case.description, outputs=outputs))
    if not any(failed_outputs(with_tolerances, kernels) for kernels in WRONG):
        raise ValueError(f"No wrong kernel fails the case {case.name}: remove it, or change it.")
    return Pin(outputs, checksums(case))


def failed_outputs(case: Case, kernels: type[PlainKernels]) -> dict[str, float]:
    """Run a case's graph with kernels in Python; return the outputs beyond their tolerance, and their errors."""
    errors = kernel_errors(case, kernels)
    return {
        item.name: errors[item.name] for item in case.description.outputs if not errors[item.name] <= item.tolerance
    }


def kernel_errors(case: Case, kernels: type[PlainKernels]) -> dict[str, float]:
    """Return the largest error of each output over a case's data sets."""
    computing = kernels(case.description.type)
    graph, errors = evaluated_graph(case.model, computing.operators()), dict.fromkeys(case.outputs, 0.0)
    for data in case.data_sets:
        with np.errstate(all="ignore"):  # wrong kernels may overflow, which makes their error infinite
            found = graph(data.inputs)
        found = {name: _as_cached(name, array, computing) for name, array in found.items()}
        errors = {name: max(errors[name], relative_error(found[name], wanted)) for name, wanted in data.outputs.items()}
    return errors


def plain_model_errors(case: Case) -> dict[str, float]:
    """Return the errors of plain arithmetic, in the case's type, for a case of a whole model."""
    problem = next(each for each in MODEL_PROBLEMS if f"model_{each.name}" == case.name)

    def stored(array: Array) -> Array:
        return single(array.astype(NUMPY[problem.dtype]))

    plain = Arithmetic(PlainKernels(problem.dtype).operators(), stored, single)
    found = run_model(problem.model, model_weights(problem), case.inputs, plain)
    return {name: relative_error(found[name], wanted) for name, wanted in case.outputs.items()}


def _as_cached(name: str, array: Array, kernels: PlainKernels) -> Array:
    if not (name.startswith("present.") and name.endswith(".key")):
        return array
    return np.asarray(kernels.cached_keys(array.astype(np.float32)))


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


if __name__ == "__main__":
    main()
