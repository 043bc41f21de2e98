"""The delta rule's compiled code, run by the machine in ``tests/plugins/ptx``, against float64."""

import pytest

from tests.plugins.delta_rule import kernel_runs
from tests.plugins.delta_rule.kernel_runs import FACTOR, OUTPUT_FACTOR, Case, run_delta_rule

# Where the plain version is exact by luck: the machine cuts off the sum of each of three products, as tensor cores do.
FLOOR = 3 * 2.0**-23
CASES = [
    (86, Case(1, decay="fast", beta="small", dtype="float16")),
    (86, Case(65, 0.9, "open", "gone")),
    (86, Case(130, 1.0, "two", "slow", "bfloat16")),
    (86, Case(70, dtype="float32", decay="fast", widths=(255, 40))),
    (86, Case(70, dtype="float16", decay="fast", widths=(128, 128))),
    (90, Case(65, 1.0, "two", "slow")),
    (90, Case(70, dtype="bfloat16", decay="fast", widths=(68, 100))),
    (100, Case(70, dtype="float32", decay="fast", widths=(128, 100))),
    (120, Case(65, 0.9, "two", "reset", "bfloat16")),
]


@pytest.mark.parametrize(("arch", "case"), CASES, ids=str)
def test_error_is_that_of_rounding(arch, case, compiled, monkeypatch):
    launcher = compiled(arch)
    monkeypatch.setattr(kernel_runs, "INTERPRETER_ARCH", arch)
    result = run_delta_rule(case)
    (output, state), (plain_output, plain_state) = result["errors"], result["plain"]
    assert output <= OUTPUT_FACTOR[case.dtype] * plain_output + FLOOR, result
    assert state <= FACTOR * plain_state + FLOOR, result
    assert len(launcher.launched) == (1 if case.tokens == 1 else 2)
