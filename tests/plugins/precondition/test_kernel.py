"""The preconditioner kernel in Triton's interpreter against float64."""

import time

import pytest

from tests.patience import PATIENCE
from tests.plugins.kernel_cases import Case, relative_error, within_gate
from tests.plugins.precondition.kernel_runs import (
    run_far_away,
    run_in_given_order,
    run_next_program,
    run_precondition,
    run_with_infinite_squares,
    run_with_infinite_value,
    run_with_sums_cut_off,
    run_with_values_of_sizes,
    shared_problem,
)

SIZES = [
    Case(new=1),
    Case(new=1, past=1, dtype="bfloat16", keys=0.99),
    Case(new=1, past=100, dtype="float16", keys=0.99),
    Case(new=2),
    Case(new=2, past=1, dtype="float16", keys="repeated"),
    Case(new=63, keys=0.99),
    Case(new=63, past=100, dtype="bfloat16", keys=0.9),
    Case(new=64, dtype="float16", keys=0.99),
    Case(new=64, past=1, keys="repeated"),
    Case(new=65, past=100, keys=0.9),
    Case(new=65, dtype="bfloat16", keys=0.99),
    Case(new=200, dtype="float16", keys=0.9),
    Case(new=200, past=1, dtype="bfloat16", keys="repeated"),
    Case(new=257, keys=0.99),
    Case(new=257, past=100, dtype="float16", keys=0.99),
    Case(new=257, past=100, dtype="bfloat16", keys=0.9),
    Case(new=257, dtype="bfloat16", keys=0.99),
    Case(new=200, past=100, keys=0.0),
    Case(new=65, dtype="float16", keys=0.0),
]
WIDTHS = [
    Case(new=65, past=1, width=width, dtype=dtype, keys=0.9, heads=1)
    for width, dtype in [
        (16, "float32"),
        (16, "bfloat16"),
        (36, "float16"),
        (36, "float32"),
        (68, "bfloat16"),
        (68, "float16"),
        (68, "float32"),
        (80, "float16"),
        (80, "bfloat16"),
        (96, "float32"),
        (96, "bfloat16"),
        (128, "float16"),
        (128, "float32"),
        (255, "float32"),
        (256, "bfloat16"),
    ]
]
PADDED = [
    Case(new=new, past=past, dtype=dtype, keys=keys, padded=True, batch=2)
    for new, past, dtype, keys in [
        (1, 0, "float32", 0.9),
        (2, 1, "float16", 0.9),
        (65, 100, "float32", 0.99),
        (65, 0, "bfloat16", 0.9),
        (200, 100, "float16", "repeated"),
        (129, 100, "bfloat16", 0.99),
    ]
]
BLOCKS = [
    Case(new=130, past=33, dtype=dtype, keys=0.9, heads=1, tuned=tuned)
    for tuned, dtype in [((16, 16), "float16"), ((32, 16), "float32"), ((128, 64), "bfloat16"), ((128, 32), "float32")]
]
CHUNKS = [
    Case(new=70, past=33, dtype=dtype, width=width, keys=keys, heads=1, padded=padded, tuned=(32, 16, 32))
    for dtype, width, keys, padded in [
        ("float32", 68, 0.99, False),  # of four chunks two and a bit hold keys
        ("float32", 128, "repeated", True),
        ("float32", 132, 0.99, False),  # the fifth of eight chunks holds four columns, the last three none
        ("bfloat16", 64, 0.9, True),
    ]
]
INT8 = [  # E in bfloat16 and int8, in other tiles than those that are shipped, and two bfloat16 parts in shipped ones
    Case(new=new, past=past, dtype="bfloat16", width=width, keys=keys, heads=1, tuned=tuned, **more)
    for new, past, width, keys, tuned, more in [
        (70, 33, 64, 0.99, (16, 16, 0, 1), {}),
        (130, 70, 68, "repeated", (32, 32, 64, 1), {"padded": True, "batch": 2}),
        (65, 0, 256, 0.9, (64, 64, 128, 1), {}),
        (70, 40, 32, 0.99, (32, 32, 0, 1), {"training": True}),
        (257, 100, 64, 0.99, (64, 64), {}),
        (130, 40, 128, 0.9, (64, 32), {"padded": True, "batch": 2}),
        (130, 33, 256, "repeated", (64, 16), {}),
        (70, 40, 64, 0.9, (64, 64), {"training": True}),
    ]
]
FLOAT32 = [  # factors split by hand, in tiles that are shipped
    Case(new=new, past=40, width=width, keys=keys, heads=1, tuned=tuned)
    for new, width, tuned in [
        (260, 32, (64, 32)),
        (260, 64, (64, 32)),
        (130, 128, (64, 32, 32)),
        (130, 128, (64, 32, 64)),
        (70, 256, (32, 16, 32)),
    ]
    for keys in (0.5, 0.99, "repeated")
]
TRAINING = [
    Case(new=65, past=100, keys=0.9, training=True),
    Case(new=130, dtype="bfloat16", keys=0.99, training=True),
    Case(new=70, past=40, dtype="float16", keys="repeated", training=True),
    Case(new=66, past=65, keys=0.99, width=68, padded=True, batch=2, training=True),
]


@pytest.mark.parametrize("case", SIZES + WIDTHS + PADDED + BLOCKS + CHUNKS + INT8 + FLOAT32 + TRAINING, ids=str)
def test_error_is_that_of_rounding(case, interpret):
    result = interpret(run_precondition, case)
    assert within_gate(result["error"], result["plain"], case.dtype), result
    assert result["guards_intact"], "the kernel wrote outside its output or its workspace"
    assert result["padding_is_v"]


@pytest.mark.parametrize(
    "case",
    [
        Case(new=257, width=128, keys=0.9, heads=1, tuned=(64, 32, 32)),
        Case(new=640, width=16, keys=0.5, heads=1, tuned=(64, 32)),
    ],
    ids=["scores by chunks", "Y by tiles"],
)
def test_sums_start_from_zero_since_tensor_cores_cut_them_off(case, interpret):
    result = interpret(run_with_sums_cut_off, case)
    assert result["cut off"] <= 1.5 * result["rounded"], result


@pytest.mark.parametrize("tuned", [None, (16, 16)], ids=["shipped", "small"])
@pytest.mark.parametrize(
    ("sizes", "past"),
    [([1e25], 1e25), ([1e-25], 1e-25), ([1e9, 1.0, 1e-9], 1e-12), ([1e-9, 1e9, 1e3], 1e12), ([0.0, 1.0], 0.0)],
)
def test_values_of_any_size_are_multiplied_by_float16(sizes, past, tuned, interpret):
    """Float16 ends at 65504, and at 6e-8: 64 past tokens, and every block row, have a power of two of their own."""
    result = interpret(run_with_values_of_sizes, Case(new=150, past=100, keys=0.5, heads=1, tuned=tuned), sizes, past)
    assert within_gate(result["error"], result["plain"], "float32"), result


def test_rows_far_smaller_than_those_before_lose_what_e_loses_of_these(interpret):
    """E loses 2⁻³⁴ at most, of either sign: of 64 past rows, 2²⁰ times larger, 8 times as much of their size."""
    case = Case(new=32, past=64, width=256, keys=0.0, heads=1)
    result = interpret(run_with_values_of_sizes, case, [1.0], 2.0**20)
    assert result["error"] <= 3 * result["plain"] + 8 * 2.0**-34 * 2.0**20, result


@pytest.mark.parametrize("seed", [0, 1])
def test_launch_order_does_not_matter(seed, interpret):
    case = Case(new=130, past=20, heads=2, batch=2, tuned=(32, 16), padded=True)
    assert interpret(run_in_given_order, case, seed) == {"shuffled": True, "equal": True}


def test_a_program_waits_for_the_rows_before_its_own(interpreter_pool, second_pool):
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


def test_a_key_too_large_for_float32_is_not_taken_for_padding(interpret):
    assert interpret(run_with_infinite_squares)[2:] == [True] * 4


def test_rows_that_know_of_an_infinite_value_are_not_finite(interpret):
    """Split by hand, infinity leaves NaN as its rest, where ``tf32x3`` takes 0: neither is a number."""
    finite = interpret(run_with_infinite_value)
    assert all(finite[:16]) and not any(finite[20:])


def test_tensors_of_more_than_2_to_the_31_elements(interpret):
    assert interpret(run_far_away, "float16", 31) < 1e-3
