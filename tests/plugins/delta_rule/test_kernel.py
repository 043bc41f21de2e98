"""The delta rule's kernels in Triton's interpreter against float64."""

import pytest

from tests.plugins.delta_rule.kernel_runs import FACTOR, OUTPUT_FACTOR, Case, run_delta_rule, run_operator

FLOOR = 1e-7  # where the plain version is exact by luck

ONE = [
    Case(1, decay=decay, beta=beta, dtype=dtype)
    for decay, beta, dtype in [
        ("none", "one", "float32"),
        ("reset", "two", "bfloat16"),
        ("fast", "small", "float16"),
        ("gone", "open", "float32"),
    ]
]
MANY = [
    Case(2, dtype="float16"),
    Case(63, 0.9, "open", "none", "bfloat16"),
    Case(64, 1.0, "two", "none"),
    Case(65, 1.0, "two", "slow"),
    Case(65, 0.9, "open", "gone"),
    Case(65, 0.0, "small", "fast", "float16"),
    Case(127, 0.9, "two", "reset", "bfloat16"),
    Case(130, 1.0, "one", "reset"),
    Case(130, 1.0, "two", "slow", "bfloat16"),
    Case(130, 1.0, "two", "none", "float16"),
    Case(130, 0.9, "open", "fast"),
    Case(1000, 0.9, "open", "slow", "bfloat16", widths=(16, 8)),
    Case(4096, 0.9, "open", "fast", widths=(16, 4)),
]
WIDTHS = [
    Case(70, dtype=dtype, decay="fast", widths=widths)
    for widths, dtype in [
        ((16, 1), "float32"),
        ((20, 33), "float16"),
        ((68, 100), "bfloat16"),
        ((128, 128), "float16"),
        ((255, 40), "float32"),
        ((256, 36), "bfloat16"),
    ]
]
BLOCKS = [
    Case(70, tuned=tuned, dtype=dtype, beta="two", decay="fast")
    for tuned, dtype in [((16, 16), "float32"), ((32, 64), "bfloat16"), ((128, 16), "float16")]
]


@pytest.mark.parametrize("case", ONE + MANY + WIDTHS + BLOCKS, ids=str)
def test_error_is_that_of_rounding(case, interpret):
    result = interpret(run_delta_rule, case)
    (output, state), (plain_output, plain_state) = result["errors"], result["plain"]
    assert output <= OUTPUT_FACTOR[case.dtype] * plain_output + FLOOR, result
    assert state <= FACTOR * plain_state + FLOOR, result
    assert result["guards_intact"], "a kernel wrote outside its outputs or its workspace"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tokens", [1, 65])
def test_pytorchs_operator_takes_them(tokens, dtype, interpret):
    result = interpret(run_operator, tokens, dtype)
    assert result["launched"] == (["decode"] if tokens == 1 else ["chunk", "state"])
    assert result["in_order"], "PyTorch's own check of operators"


@pytest.mark.parametrize("changes", ["float64", "narrow", "state"])
def test_pytorchs_operator_computes_what_they_do_not_take(changes, interpret):
    dtype = "float64" if changes == "float64" else "float16"
    assert interpret(run_operator, 3, dtype, changes)["launched"] == []
