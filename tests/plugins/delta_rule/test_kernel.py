"""The delta rule's kernels in Triton's interpreter against float64."""

import pytest

from tests.plugins.delta_rule.kernel_runs import FACTOR, OUTPUT_FACTOR, Case, run_delta_rule, run_operator

FLOOR = 1e-7  # where the plain version is exact by luck

CASES = [
    Case(1, decay="none", beta="one"),
    Case(1, decay="reset", beta="two", dtype="bfloat16"),
    Case(2, dtype="float16"),
    Case(63, 1.0, "two", "none"),
    Case(65, 0.9, "open", "gone", "bfloat16"),
    Case(129, 0.9, "two", "slow", "float16"),
    Case(70, decay="fast", widths=(20, 33)),
    Case(70, decay="fast", widths=(255, 40), dtype="bfloat16"),
    Case(70, tuned=(16, 16), beta="two", decay="fast"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_error_is_explained_by_rounding(case, interpret):
    result = interpret(run_delta_rule, case)
    (output, state), (plain_output, plain_state) = result["errors"], result["plain"]
    assert output <= OUTPUT_FACTOR[case.dtype] * plain_output + FLOOR, result
    assert state <= FACTOR * plain_state + FLOOR, result
    assert result["guards_intact"], "a kernel wrote outside its outputs or its workspace"


@pytest.mark.parametrize("tokens", [1, 65])
def test_the_pytorch_operator_runs_the_kernels(tokens, interpret):
    result = interpret(run_operator, tokens, "bfloat16")
    assert result["launched"] == (["decode"] if tokens == 1 else ["chunk", "state"])
    assert result["in_order"], "PyTorch's own check of operators"


@pytest.mark.parametrize("changes", ["float64", "narrow", "state"])
def test_the_pytorch_operator_computes_unsupported_inputs(changes, interpret):
    dtype = "float64" if changes == "float64" else "float16"
    assert interpret(run_operator, 3, dtype, changes)["launched"] == []
