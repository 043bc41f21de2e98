"""The decode kernels in Triton's interpreter against float64."""

import pytest

from tests.plugins.decode_attention.kernel_runs import run_decode
from tests.plugins.kernel_cases import Case, within_gate

CASES = [
    Case(new=1, past=0),
    Case(new=1, past=0, dtype="bfloat16", groups=1),
    Case(new=1, past=1, dtype="float16", keys=0.99),
    Case(new=1, past=63, keys=0.99),
    Case(new=1, past=64, dtype="bfloat16", keys="repeated", groups=7),
    Case(new=1, past=65, dtype="float16", keys=0.9, groups=15),
    Case(new=1, past=200, dtype="bfloat16", keys=0.99, groups=16),
    Case(new=1, past=257, keys="repeated"),
    Case(new=1, past=100, dtype="float16", keys=0.9, groups=40),
    Case(new=1, past=257, dtype="float16", keys=0.99, groups=1),
    Case(new=1, past=2100, dtype="bfloat16", keys=0.9, heads=1, tuned=(0, 16)),
    Case(new=1, past=2100, keys=0.99, heads=1, tuned=(0, 16)),
    Case(new=1, past=100, keys=0.0),
    Case(new=1, past=100, dtype="float16", keys=0.9, batch=2, padded=True),
    Case(new=1, past=257, dtype="bfloat16", keys=0.99, batch=2, padded=True, groups=8),
    Case(new=1, past=65, keys=0.9, batch=2, padded=True, static=200),
    Case(new=1, past=3, dtype="float16", keys=0.9, batch=2, padded=True, static=509),
    Case(new=1, past=0, dtype="float16", keys=0.9, static=128),
]
WIDTHS = [
    Case(new=1, past=100, width=width, dtype=dtype, keys=0.9, heads=1)
    for width, dtype in [
        (16, "bfloat16"),
        (36, "float32"),
        (68, "float16"),
        (68, "bfloat16"),
        (80, "float32"),
        (96, "float16"),
        (128, "bfloat16"),
        (255, "float16"),
        (256, "float32"),
    ]
]


TRAINING = [
    Case(new=1, past=100, keys=0.9, training=True),
    Case(new=1, past=0, dtype="bfloat16", training=True),
    Case(new=1, past=257, dtype="bfloat16", keys=0.99, batch=2, padded=True, groups=8, training=True),
    Case(new=1, past=65, dtype="float16", keys="repeated", batch=2, padded=True, static=200, training=True),
]

SEVERAL = [
    Case(new=2, past=0, keys=0.99),
    Case(new=16, past=0, dtype="bfloat16", keys="repeated", groups=1),
    Case(new=8, past=1, dtype="float16", keys=0.99),
    Case(new=8, past=257, keys="repeated"),
    Case(new=8, past=257, dtype="bfloat16", keys=0.99, heads=1),
    Case(new=8, past=2100, dtype="float16", keys=0.9, heads=1, groups=1, tuned=(0, 16)),
    Case(new=15, past=65, dtype="bfloat16", keys="repeated", groups=3),
    Case(new=16, past=200, dtype="float16", keys=0.99),  # 80 rows: two tiles of 64
    Case(new=16, past=64, keys=0.9, heads=1, groups=16, width=68),  # the new keys lie in the last of nine tiles
    Case(new=5, past=100, dtype="float16", keys=0.99, groups=12),  # 65 rows: the last new key alone in a tile
    Case(new=3, past=63, keys=0.0),
    Case(new=8, past=100, dtype="float16", keys=0.99, batch=2, padded=True),
    Case(new=16, past=3, dtype="bfloat16", keys="repeated", batch=2, padded=True, static=509),
    Case(new=4, past=65, keys=0.99, batch=2, padded=True, static=200),
    Case(new=2, past=0, dtype="float16", keys=0.9, static=128),
    Case(new=8, past=65, dtype="float16", keys="repeated", batch=2, padded=True, static=200, training=True),
    Case(new=16, past=100, keys=0.9, training=True),
    *(
        Case(new=7, past=100, width=width, dtype=dtype, keys=0.99, heads=1, groups=2)
        for width, dtype in [(16, "bfloat16"), (36, "float32"), (68, "float16"), (128, "bfloat16"), (255, "float16")]
    ),
]


FLOAT8 = [
    Case(new=1, past=1, dtype="float16", keys=0.99, float8=True),
    Case(new=1, past=64, dtype="bfloat16", keys="repeated", groups=7, float8=True),
    Case(new=1, past=257, dtype="float16", keys=0.99, groups=1, float8=True),
    Case(new=1, past=257, keys="repeated", float8=True),
    Case(new=1, past=100, dtype="float16", keys=0.9, heads=1, width=72, float8=True),
    Case(new=1, past=100, dtype="bfloat16", keys=0.9, heads=1, width=128, training=True, float8=True),
    Case(new=1, past=0, dtype="float16", keys=0.9, static=128, float8=True),
    Case(new=1, past=65, dtype="bfloat16", keys=0.9, batch=2, padded=True, static=200, float8=True),
    Case(new=1, past=2100, dtype="float16", keys=0.9, heads=1, tuned=(0, 16), float8=True),
    Case(new=8, past=257, dtype="float16", keys="repeated", heads=1, float8=True),
    Case(new=16, past=100, dtype="bfloat16", keys=0.99, batch=2, padded=True, groups=4, float8=True),
    Case(new=1, past=65, dtype="float16", keys=0.9, zeros=True, float8=True),
    Case(new=1, past=1, dtype="bfloat16", keys="repeated", zeros=True, float8=True),  # nothing else is cached
    Case(new=8, past=70, dtype="bfloat16", keys=0.99, heads=1, batch=2, padded=True, zeros=True, float8=True),
    Case(new=1, past=65, keys=0.9, heads=1, zeros=True),
]

# With the keys' squares added by tensor cores, and on 10.0 Y converted directly; up to width 128 with parts.
FLOAT8_PRODUCTS = [
    Case(new=1, past=1, dtype="float16", keys=0.99, width=128, float8=True, arch=90),
    Case(new=1, past=257, dtype="float16", keys="repeated", heads=1, width=128, float8=True, arch=100),
    Case(new=1, past=130, dtype="bfloat16", keys=0.99, heads=1, width=32, float8=True, arch=100),
    Case(new=1, past=100, dtype="bfloat16", keys=0.9, heads=1, width=136, training=True, float8=True, arch=90),
    Case(
        new=1, past=65, dtype="bfloat16", keys=0.9, batch=2, padded=True, static=200, width=128, float8=True, arch=100
    ),
    Case(new=1, past=65, dtype="float16", keys=0.9, batch=2, padded=True, zeros=True, width=128, float8=True, arch=100),
    Case(new=3, past=100, dtype="bfloat16", keys=0.99, heads=1, width=128, zeros=True, float8=True, arch=90),
    Case(new=16, past=100, dtype="bfloat16", keys=0.99, heads=1, width=128, float8=True, arch=100),
]

# With a part of each tile for each warp.
PARTS = [
    Case(new=1, past=0, dtype="float16", keys=0.9, static=200, arch=100),
    Case(new=1, past=1, dtype="bfloat16", keys=0.99, arch=100),
    Case(new=1, past=257, dtype="float16", keys="repeated", heads=1, arch=100),
    Case(new=1, past=700, dtype="bfloat16", keys=0.99, width=32, heads=1, groups=15, arch=90),
    Case(new=1, past=257, dtype="bfloat16", keys=0.99, batch=2, padded=True, static=509, arch=90),
    Case(new=1, past=257, dtype="float16", keys=0.9, width=128, batch=2, padded=True, training=True, arch=100),
    Case(new=1, past=2100, dtype="float16", keys=0.99, heads=1, tuned=(0, 16), arch=100),
    Case(new=3, past=257, dtype="bfloat16", keys="repeated", width=128, groups=3, training=True, arch=100),
    Case(new=2, past=130, dtype="float16", keys=0.99, batch=2, padded=True, zeros=True, arch=90),
    *(
        Case(new=1, past=100, width=width, dtype=dtype, keys=0.9, heads=1, arch=100)
        for width, dtype in [(16, "bfloat16"), (20, "float16"), (40, "float16"), (68, "bfloat16"), (96, "float16")]
    ),
    Case(new=1, past=0, dtype="float32", keys=0.9, static=200, arch=100),
    Case(new=1, past=700, dtype="float32", keys=0.99, width=32, heads=1, groups=15, arch=90),
    Case(new=1, past=257, dtype="float32", keys="repeated", batch=2, padded=True, static=509, arch=90),
    Case(new=3, past=257, dtype="float32", keys=0.99, groups=3, training=True, zeros=True, arch=100),
    *(
        Case(new=1, past=100, width=width, dtype="float32", keys=0.9, heads=1, arch=100)
        for width in (16, 20, 36, 40, 60)
    ),
    # Up to 8 rows of heads as wide as their tile, and 9.
    Case(new=1, past=257, dtype="float32", keys="repeated", width=128, heads=1, groups=7, arch=90),
    Case(new=2, past=300, dtype="float32", keys=0.99, width=128, groups=3, training=True, zeros=True, arch=100),
    Case(new=4, past=130, dtype="bfloat16", keys=0.99, width=32, batch=2, padded=True, groups=1, arch=100),
    Case(new=2, past=257, dtype="float16", keys="repeated", groups=3, training=True, arch=90),
    Case(new=1, past=257, dtype="float32", keys=0.99, heads=1, groups=8, arch=100),
    Case(new=1, past=257, dtype="bfloat16", keys="repeated", heads=1, groups=8, arch=90),
    Case(new=1, past=300, dtype="float16", keys=0.99, width=128, heads=1, groups=9, arch=100),
    Case(new=1, past=257, dtype="bfloat16", keys="repeated", groups=7, float8=True, arch=90),
    Case(
        new=2, past=300, dtype="float16", keys=0.99, groups=3, batch=2, padded=True, zeros=True, float8=True, arch=100
    ),
    Case(new=1, past=257, dtype="float16", keys="repeated", heads=1, groups=8, width=32, float8=True, arch=100),
    # Rounding of weights relative to peaks of parts, not of a row, differs from the plain one: more rows, less luck.
    Case(new=1, past=130, width=16, dtype="float16", keys=0.9, heads=1, groups=15, arch=100),
]

# The same over a cache of E4M3.
FLOAT8_PARTS = [
    Case(new=1, past=0, dtype="float16", keys=0.9, static=200, float8=True, arch=100),
    Case(new=1, past=1, dtype="bfloat16", keys=0.99, float8=True, arch=90),
    Case(new=1, past=700, dtype="bfloat16", keys="repeated", width=32, heads=1, groups=15, float8=True, arch=90),
    Case(new=1, past=257, dtype="float16", keys="repeated", heads=1, float8=True, arch=90),
    Case(
        new=1,
        past=257,
        dtype="bfloat16",
        keys=0.99,
        batch=2,
        padded=True,
        static=509,
        training=True,
        float8=True,
        arch=100,
    ),
    Case(new=1, past=2100, dtype="float16", keys=0.99, heads=1, tuned=(0, 16), float8=True, arch=100),
    Case(new=3, past=257, dtype="float16", keys="repeated", groups=3, zeros=True, training=True, float8=True, arch=100),
    *(
        Case(new=1, past=100, width=width, dtype=dtype, keys=0.9, heads=1, float8=True, arch=100)
        for width, dtype in [(16, "bfloat16"), (24, "float16"), (40, "float16"), (72, "bfloat16"), (120, "float16")]
    ),
]


@pytest.mark.parametrize(
    "case", CASES + WIDTHS + TRAINING + SEVERAL + FLOAT8 + FLOAT8_PRODUCTS + PARTS + FLOAT8_PARTS, ids=str
)
def test_error_is_that_of_rounding(case, interpret):
    result = interpret(run_decode, case)
    assert within_gate(result["error"], result["plain"], case.dtype), result
    assert within_gate(result["y_error"], result["y_plain"], case.dtype), result
    assert result["guards_intact"], "the kernel wrote outside its outputs or its workspace"
    assert result["padding_is_v"]
