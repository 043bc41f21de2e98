"""The preconditioner kernel in Triton's interpreter against float64."""

import time

import pytest

from tests.patience import PATIENCE
from tests.plugins.kernel_cases import Case, relative_error, within_gate
from tests.plugins.precondition.kernel_runs import (
    run_next_program,
    run_precondition,
    run_with_values_of_sizes,
    shared_problem,
)

CASES = [
    Case(new=1, past=0),
    Case(new=2, past=1, dtype="float16", keys="repeated"),
    Case(new=63, past=100, keys=0.99, padded=True, batch=2),
    Case(new=129, past=100, dtype="bfloat16", keys="repeated", padded=True, batch=2),
    Case(new=257, keys=0.99, heads=1),
    Case(new=65, past=1, width=36, keys=0.9, heads=1),
    Case(new=65, past=1, width=255, keys=0.9, heads=1),
    Case(new=70, past=33, width=68, keys=0.99, heads=1, tuned=(32, 16, 32)),  # products by chunks of columns
    Case(new=129, past=70, width=68, dtype="bfloat16", keys=0.9, heads=1, tuned=(32, 32, 64, 1)),  # E with int8 rests
    Case(new=129, past=40, width=128, dtype="bfloat16", keys=0.9, padded=True, batch=2, tuned=(64, 32)),  # two parts
    Case(new=66, past=65, keys=0.99, width=68, padded=True, batch=2, training=True),
    Case(new=70, past=40, dtype="float16", keys="repeated", training=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_error_is_explained_by_rounding(case, interpret):
    result = interpret(run_precondition, case)
    assert within_gate(result["error"], result["plain"], case.dtype), result
    assert result["guards_intact"], "the kernel wrote outside its output or its workspace"
    assert result["padding_is_v"]


@pytest.mark.parametrize(("sizes", "past"), [([1e25], 1e25), ([1e-9, 1e9, 1e3], 1e12), ([0.0, 1.0], 0.0)])
def test_values_beyond_the_range_of_float16(sizes, past, interpret):
    """Float16 holds 6e-8 to 65504: every 64 past tokens and every block row have their own power of two."""
    result = interpret(run_with_values_of_sizes, Case(new=150, past=100, keys=0.5, heads=1), sizes, past)
    assert within_gate(result["error"], result["plain"], "float32"), result


def test_a_program_waits_for_earlier_rows(interpreter_pool, second_pool):
    case = Case(new=48, past=20, heads=1, tuned=(16, 16))
    problem = shared_problem(case)
    problem["workspace"][0] = 1
    second = interpreter_pool.apply_async(run_next_program, (case, problem))
    deadline = time.monotonic() + PATIENCE
    while problem["workspace"][0] == 1 and time.monotonic() < deadline:  # until it has its ticket
        second.wait(0.1)
    second.wait(1)
    assert not second.ready(), "block row 1 did not wait for block row 0"
    problem["workspace"][0] = 0
    first = second_pool.apply_async(run_next_program, (case, problem))
    assert first.get(timeout=PATIENCE) and second.get(timeout=PATIENCE)
    assert problem["workspace"][:2].tolist() == [1, 2]
    assert relative_error(problem["y"][:, :, :32], problem["exact"][:, :, :32]) < 1e-4
    assert problem["y"][:, :, 32:].isnan().all()
