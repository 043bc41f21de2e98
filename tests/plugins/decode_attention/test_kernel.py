"""The decode kernels in Triton's interpreter against float64."""

import pytest

from tests.plugins.decode_attention.kernel_runs import run_decode
from tests.plugins.kernel_cases import Case, within_gate

CASES = [
    Case(new=1, past=0, static=128),
    Case(new=1, past=63, keys="repeated", groups=15),
    Case(new=1, past=129, dtype="bfloat16", keys=0.99, batch=2, padded=True, groups=8, static=200),
    Case(new=1, past=600, dtype="float16", keys=0.9, heads=1, tuned=(0, 16)),
    Case(new=1, past=100, width=36, keys=0.9, heads=1, training=True),
    Case(new=1, past=100, width=255, dtype="float16", keys=0.9, heads=1),
    Case(new=16, past=65, dtype="bfloat16", keys="repeated", batch=2, padded=True, training=True),
    Case(new=5, past=129, keys=0.99, groups=12),  # 65 rows: the last new key alone in a tile
    # A cache of E4M3, with a scale for each row.
    Case(new=1, past=0, dtype="float16", keys=0.9, static=128, float8=True),
    Case(new=1, past=129, dtype="bfloat16", keys="repeated", batch=2, padded=True, zeros=True, float8=True),
    Case(new=8, past=63, dtype="float16", keys=0.99, heads=1, width=72, training=True, float8=True),
    # With a part of each tile for each warp, as on 9.0 and 10.0.
    Case(new=1, past=300, dtype="bfloat16", keys=0.99, batch=2, padded=True, static=209, arch=90),
    Case(new=2, past=129, keys=0.99, width=128, groups=3, training=True, zeros=True, arch=100),
    Case(new=2, past=300, dtype="float16", keys=0.99, groups=3, batch=2, padded=True, float8=True, arch=100),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_error_is_explained_by_rounding(case, interpret):
    result = interpret(run_decode, case)
    assert within_gate(result["error"], result["plain"], case.dtype), result
    assert within_gate(result["y_error"], result["y_plain"], case.dtype), result
    assert result["guards_intact"], "the kernel wrote outside its outputs or its workspace"
    assert result["padding_is_v"]
