"""Make the conformance cases: inputs, expected outputs computed in float64, and graphs with today's operator bodies.

Only ``pinned.json`` is stored: each output's tolerance and baseline, and each tensor's checksum, which is too coarse to
depend on a processor's last bit. Whenever a case is made, its checksums are compared with those.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from lucid_deploy.conformance.case_files import Case, DataSet, Description, Output, write_case
from lucid_deploy.conformance.formulas import FORMULAS, Array
from lucid_deploy.conformance.graphs import operator_model
from lucid_deploy.conformance.problem_list import PROBLEMS
from lucid_deploy.conformance.problems import NUMPY, Problem, make_inputs, single
from lucid_deploy.conformance.tiny_graph import tiny_graph
from lucid_deploy.conformance.tiny_model import EXACT, MODEL_PROBLEMS, ModelProblem, model_inputs, run_model
from lucid_deploy.errors import LucidError
from lucid_deploy.files import atomic_folders
from lucid_deploy.plugins.table import SCATTER_ROW, Operator

PINNED = Path(__file__).with_name("pinned.json")
# Tolerance / baseline. Other orders of summation, exp and rsqrt gave errors of 0.5 to 2.4 baselines in float32.
FACTOR = {"float32": 4.0, "float16": 3.0, "bfloat16": 3.0}
# Least baseline: about the type's relative rounding error. A plain implementation may happen to be exact in a case.
FLOOR = {"float32": 1e-7, "float16": 2.5e-4, "bfloat16": 2e-3}
# Relative difference of checksums that passes: they are written with six digits. All tensors are computed in float64
# and then rounded, so another processor's last bit changes few numbers of a tensor, if any.
CHECKSUM_TOLERANCE = 1e-4


class Pin(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The stored tolerances and checksums of a case.

    Attributes:
        outputs: Tolerance and baseline of each output.
        checksums: For each data set, the checksums of its inputs, then of its outputs.
    """

    outputs: list[Output]
    checksums: list[list[float]]


def case_names(only: str = "") -> list[str]:
    """Return the names of all cases, or those that contain the text ``only``.

    Raises:
        LucidError: No name contains it.
    """
    names = sorted(name for name in _makers() if only in name)
    if not names:
        raise LucidError(f"No case has {only!r} in its name.")
    return names


def make_case(name: str) -> Case:
    """Make a case, with its pinned tolerances.

    Raises:
        LucidError: The case's checksums differ from the pinned ones, or none are pinned.
    """
    case, pin = _makers()[name](), pinned().get(name)
    if pin is None or not _same(checksums(case), pin.checksums):
        raise LucidError(
            f"The case {name} has other numbers than {PINNED.name} says: either numpy computes wrongly here, or the "
            "sources of the cases were changed. After an intended change, run: python -m tests.conformance.pin"
        )
    return replace(case, description=msgspec.structs.replace(case.description, outputs=pin.outputs))


def write_cases(folder: Path, only: str = "") -> int:
    """Write cases into a new or empty folder, completely or not at all, and return how many.

    Raises:
        LucidError: No name contains ``only``, ``folder`` is a file or not empty, or :func:`make_case` raises one.
    """
    names = case_names(only)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LucidError(f"{folder} exists and is not empty. Cases are written into a new folder.")
    with atomic_folders(folder) as (building,):
        for name in names:
            write_case(building, make_case(name))
    return len(names)


def unpinned_case(name: str) -> Case:
    """Make a case whose description has no outputs yet; ``tests.conformance.pin`` derives their tolerances."""
    return _makers()[name]()


@functools.cache
def pinned() -> dict[str, Pin]:
    """Return the stored tolerances and checksums of each case, by its name."""
    return msgspec.json.decode(PINNED.read_bytes(), type=dict[str, Pin])


def checksums(case: Case) -> list[list[float]]:
    """Return by data set each tensor's checksum: the sum of weight · value, divided by √(number of values)."""
    return [[_checksum(array) for array in (*data.inputs.values(), *data.outputs.values())] for data in case.data_sets]


def _checksum(array: Array) -> float:
    values = np.asarray(array).astype(np.float64).reshape(-1)
    weights = np.cos(np.arange(values.size, dtype=np.float64))
    return float(f"{values @ weights / np.sqrt(max(values.size, 1)):.6g}")


def _same(found: list[list[float]], wanted: list[list[float]]) -> bool:
    if [len(row) for row in found] != [len(row) for row in wanted]:
        return False
    pairs = [pair for rows in zip(found, wanted, strict=True) for pair in zip(*rows, strict=True)]
    return all(math.isclose(a, b, rel_tol=CHECKSUM_TOLERANCE, abs_tol=1e-8) for a, b in pairs)


@functools.cache
def _makers() -> Mapping[str, Callable[[], Case]]:
    makers: dict[str, Callable[[], Case]] = {
        f"{_snake(each.operator)}_{each.name}": functools.partial(_operator_case, each) for each in PROBLEMS
    }
    return makers | {f"model_{each.name}": functools.partial(_model_case, each) for each in MODEL_PROBLEMS}


def _operator_case(problem: Problem) -> Case:
    operator = problem.operator
    first, *further = map(_data_set, (problem, *problem.further))
    return Case(
        f"{_snake(operator)}_{problem.name}",
        _description(problem.text, operator.name, problem.dtype, first.inputs, operator is SCATTER_ROW),
        operator_model(problem),
        first.inputs,
        first.outputs,
        tuple(further),
    )


def _data_set(problem: Problem) -> DataSet:
    inputs = make_inputs(problem)
    exact = FORMULAS[problem.operator.name](*inputs.values(), **problem.attributes)
    return DataSet(inputs, _stored(dict(zip(problem.operator.output_names, exact, strict=True)), problem.dtype))


def _model_case(problem: ModelProblem) -> Case:
    weights = model_weights(problem)
    inputs = model_inputs(problem, weights)
    return Case(
        f"model_{problem.name}",
        _description(problem.text, "model", problem.dtype, inputs, copies=False),
        tiny_graph(problem.model, weights, problem.stage, problem.dtype),
        inputs,
        _stored(run_model(problem.model, weights, inputs, EXACT), "float32"),
    )


def model_weights(problem: ModelProblem) -> dict[str, Array]:
    """Return a model's weights by name, float32, rounded to the problem's type if the graph stores them in it."""
    weights = problem.model.weights()
    rounded = {name: single(array.astype(NUMPY[problem.dtype])) for name, array in weights.items()}
    return rounded | {name: weights[name] for name in ("head", "frequencies") if name in weights}


def _description(text: str, operator: str, dtype: str, inputs: Mapping[str, Array], copies: bool) -> Description:
    derivation = "The operator copies numbers, so nothing may differ."
    if not copies:
        derivation = (
            f"{FACTOR[dtype]:g} times the baseline, and at least {FACTOR[dtype] * FLOOR[dtype]:g}: the relative error "
            "(L2) of the batch row that is farthest off. The baseline is the error of a dense implementation in "
            f"{dtype} against float64."
        )
    types = sorted({dtype, *(str(array.dtype) for array in inputs.values())})
    return Description(text, operator, dtype, types, derivation, [])


def _stored(wanted: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """Return the expected outputs in the types of a case's files, int8 or float32."""
    kind = np.dtype(np.int8 if dtype == "int8" else np.float32)
    return {name: np.ascontiguousarray(array.astype(kind)) for name, array in wanted.items()}


def _snake(operator: Operator) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in operator.name).lstrip("_")
