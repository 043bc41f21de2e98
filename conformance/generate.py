"""Write the cases: ``python -m lucid_deploy.conformance.generate [FOLDER]``.

Expected outputs are those of the dense formulas in float64. A tolerance is a multiple of the error of a plain
implementation in the case's type. A case that none of the wrong kernels fails is not written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from lucid_deploy.conformance.case_files import CASES, Case, DataSet, Description, Output, write_case
from lucid_deploy.conformance.compare import relative_error
from lucid_deploy.conformance.formulas import FORMULAS, Array
from lucid_deploy.conformance.graphs import operator_model
from lucid_deploy.conformance.model_problems import EXACT, MODEL_PROBLEMS, ModelProblem, model_inputs
from lucid_deploy.conformance.plain import NUMPY, PlainKernels, single
from lucid_deploy.conformance.problem_list import PROBLEMS
from lucid_deploy.conformance.problems import Problem, make_inputs
from lucid_deploy.conformance.run_kernels import run_kernels
from lucid_deploy.conformance.tiny_graph import tiny_graph
from lucid_deploy.conformance.tiny_model import Arithmetic, run_model
from lucid_deploy.conformance.wrong_kernels import WRONG
from lucid_deploy.errors import LucidError
from lucid_deploy.files import whole_directory
from lucid_deploy.plugins.table import SCATTER_ROW, Operator

# Other orders of sums, other exp and rsqrt: 0.5 to 2.4 times a plain float32 implementation's error was seen.
FACTOR = {"float32": 4.0, "float16": 3.0, "bfloat16": 3.0}
# Relative rounding to the type, for cases in which the plain implementation happens to be exact.
FLOOR = {"float32": 1e-7, "float16": 2.5e-4, "bfloat16": 2e-3}


def main(folder: Path) -> None:
    """Write all cases into a folder, in place of those that are there."""
    with whole_directory(folder) as building:
        for case in all_cases():
            write_case(building, case)


def all_cases() -> Iterator[Case]:
    """Make each case.

    Raises:
        LucidError: No wrong kernel fails one.
    """
    for problem in PROBLEMS:
        yield _checked(operator_case(problem))
    for model_problem in MODEL_PROBLEMS:
        yield _checked(model_case(model_problem))


def operator_case(problem: Problem) -> Case:
    """Make the case of an operator."""
    operator = problem.operator
    first, *further = (_computed(each) for each in (problem, *problem.further))
    inputs = first[0].inputs
    baselines = {name: max(errors[name] for _, errors in (first, *further)) for name in operator.output_names}
    return Case(
        f"{_snake(operator)}_{problem.name}",
        _description(problem.text, operator.name, problem.dtype, baselines, [*inputs.values()], _copies(operator)),
        operator_model(problem, inputs),
        inputs,
        first[0].outputs,
        tuple(data_set for data_set, _ in further),
    )


def _computed(problem: Problem) -> tuple[DataSet, dict[str, float]]:
    """Return a problem's inputs and outputs, and how far the plain implementation is off."""
    inputs, operator, attributes = make_inputs(problem), problem.operator, problem.attributes
    exact = FORMULAS[operator.name](*inputs.values(), **attributes)
    plain = PlainKernels(problem.dtype).operators()[operator.name](*inputs.values(), **attributes)
    wanted = dict(zip(operator.output_names, exact, strict=True))
    errors = {name: relative_error(found, wanted[name]) for name, found in zip(wanted, plain, strict=True)}
    return DataSet(inputs, _stored(wanted, problem.dtype)), errors


def model_case(problem: ModelProblem) -> Case:
    """Make the case of a whole model."""
    dtype, weights = problem.dtype, problem.model.weights()
    for name in weights.keys() - {"head", "frequencies"}:
        weights[name] = single(weights[name].astype(NUMPY[dtype]))
    inputs = model_inputs(problem, weights)
    plain = Arithmetic(PlainKernels(dtype).operators(), lambda array: single(array.astype(NUMPY[dtype])), single)
    wanted = run_model(problem.model, weights, inputs, EXACT)
    found = run_model(problem.model, weights, inputs, plain)
    baselines = {name: relative_error(found[name], wanted[name]) for name in wanted}
    return Case(
        f"model_{problem.name}",
        _description(problem.text, "model", dtype, baselines, [*inputs.values()], False),
        tiny_graph(problem.model, weights, problem.stage, dtype),
        inputs,
        _stored(wanted, "float32"),
    )


def _description(
    text: str, operator: str, dtype: str, baselines: Mapping[str, float], inputs: list[Array], copies: bool
) -> Description:
    factor, floor = FACTOR.get(dtype, 1.0), FLOOR.get(dtype, 0.0)
    derivation = "It copies numbers, so nothing may differ."
    if not copies:
        derivation = (
            f"{factor:g} times the baseline, and at least {factor * floor:g}: the relative error (L2) of the batch row "
            f"that is farthest off. The baseline is that of a dense implementation in {dtype} against float64."
        )
    outputs = [
        Output(name, 0.0 if copies else _rounded(factor * max(error, floor)), _rounded(error))
        for name, error in baselines.items()
    ]
    types = sorted({dtype, *(str(array.dtype) for array in inputs)})
    return Description(text, operator, dtype, types, derivation, outputs)


def _checked(case: Case) -> Case:
    """Return the case, which at least one wrong kernel fails and the plain ones pass."""
    if run_kernels(case, PlainKernels):
        raise LucidError(f"The plain kernels fail the case {case.name}.")
    if not any(run_kernels(case, kernels) for kernels in WRONG):
        raise LucidError(f"No wrong kernel fails the case {case.name}: it is too wide. Take it out, or change it.")
    return case


def _stored(wanted: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """Return the expected outputs as files have them."""
    kind = np.dtype(np.int8 if dtype == "int8" else np.float32)
    return {name: np.ascontiguousarray(array.astype(kind)) for name, array in wanted.items()}


def _copies(operator: Operator) -> bool:
    return operator is SCATTER_ROW


def _snake(operator: Operator) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in operator.name).lstrip("_")


def _rounded(value: float) -> float:
    return float(f"{value:.2g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else CASES)
