"""The delta rule's compiled code, run by the emulator in ``tools/ptx``, against float64."""

import re

import pytest

from lucid_deploy.plugins.delta_rule.plan import variants
from tests.plugins.delta_rule import kernel_runs
from tests.plugins.delta_rule.kernel_runs import FACTOR, OUTPUT_FACTOR, Case, run_delta_rule

# For cases where the plain version is exact by luck: like tensor cores, the emulator truncates the sums of three MMAs.
FLOOR = 3 * 2.0**-23
PARTS = {"float32": 3, "float16": 2, "bfloat16": 2}  # MMAs for a product of keys with a float32 matrix
ROWS_PARTS = {"float32": 3, "float16": 1, "bfloat16": 1}  # MMAs for a product of keys with keys or queries
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


@pytest.mark.parametrize(("width", "dtype"), [(32, "float32"), (64, "float16"), (128, "bfloat16")])
def test_no_warp_computes_what_another_one_does(width, dtype, compiled):
    """Triton distributes all warps along the rows of an MMA; with too few rows, warps repeat each other's work."""
    for variant in variants(86):
        if variant.name not in (f"delta_chunk_{dtype}_d{width}_u4", f"delta_state_{dtype}_d{width}_u4"):
            continue
        sizes = dict(variant.constants)
        rows = sizes["BLOCK_M"]
        if variant.kernel == "delta_chunk_kernel":
            merging = 2 * 3 * rows**3 if rows == 32 else 0  # 16 rows are inverted by substitution
            needed = 2 * ROWS_PARTS[dtype] * rows**2 * width + merging
        else:
            needed = sizes["BLOCK_N"] * (3 * PARTS[dtype] * rows * width + 2 * 3 * rows**2)
        text, _ = compiled(86).compiler(variant, 86)
        shapes = [tuple(map(int, shape)) for shape in re.findall(r"mma\.sync\S*\.m(\d+)n(\d+)k(\d+)\.", text)]
        assert variant.num_warps * sum(m * n * k for m, n, k in shapes) == needed, variant
