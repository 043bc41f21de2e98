"""Decode attention's compiled code, run by the emulator in ``tools/ptx``, against float64."""

import dataclasses

import pytest

from lucid_deploy.plugins.decode_attention import plan
from tests.plugins.decode_attention.kernel_runs import run_decode
from tests.plugins.kernel_cases import Case, within_gate

# The PTX for 8.6, and for E4M3 caches 8.9, is shipped for newer GPUs too.
CASES = [
    (86, Case(new=1, past=0, dtype="float16", keys=0.9)),
    (86, Case(new=1, past=257, keys="repeated", heads=1)),
    (86, Case(new=1, past=65, dtype="bfloat16", keys=0.99, padded=True, batch=2, static=200)),
    (86, Case(new=1, past=100, width=68, dtype="float16", keys=0.99, heads=1, training=True)),
    (86, Case(new=8, past=100, dtype="bfloat16", keys="repeated", padded=True, batch=2, heads=1)),
    (86, Case(new=16, past=65, dtype="float16", keys=0.99, heads=1)),
    (86, Case(new=1, past=65, keys=0.9, heads=1, zeros=True)),
    (89, Case(new=1, past=100, dtype="float16", keys=0.99, heads=1, float8=True)),
    (89, Case(new=3, past=100, width=128, dtype="bfloat16", keys=0.9, heads=1, float8=True)),
    (90, Case(new=1, past=100, width=128, dtype="bfloat16", keys=0.9, heads=1, float8=True, training=True)),
    (80, Case(new=1, past=130, dtype="bfloat16", keys="repeated", heads=1)),
    (90, Case(new=1, past=130, width=128, dtype="float16", keys=0.99, heads=1, training=True)),
    (100, Case(new=1, past=257, dtype="float16", keys="repeated", padded=True, batch=2, static=300)),
    (90, Case(new=1, past=130, width=128, dtype="bfloat16", keys=0.99, heads=1)),
    (100, Case(new=1, past=257, dtype="bfloat16", keys=0.9, padded=True, batch=2, static=300, training=True)),
    (90, Case(new=1, past=130, width=32, keys="repeated", padded=True, batch=2, static=300)),
    (100, Case(new=1, past=257, keys=0.99, heads=1, training=True)),
    (100, Case(new=1, past=257, width=60, keys="repeated", padded=True, batch=2, heads=1)),  # 60 padded to 64
    (100, Case(new=1, past=257, width=96, dtype="bfloat16", keys=0.99, heads=1)),
    (100, Case(new=1, past=257, width=32, dtype="bfloat16", keys="repeated", heads=1, groups=7)),
    (90, Case(new=2, past=130, width=128, keys=0.99, padded=True, batch=2, heads=1, groups=3, training=True)),
    (100, Case(new=1, past=257, keys="repeated", heads=1, groups=8)),  # nine rows with the new key
    (90, Case(new=1, past=130, dtype="bfloat16", keys=0.99, heads=1, groups=8)),
    (90, Case(new=4, past=65, keys=0.99, padded=True, batch=2, heads=1, static=130)),
    (100, Case(new=8, past=65, dtype="bfloat16", keys=0.99, padded=True, batch=2, heads=1)),
    (120, Case(new=8, past=65, dtype="float16", keys="repeated", padded=True, batch=2, heads=1)),
    (90, Case(new=1, past=130, width=136, dtype="float16", keys="repeated", heads=1, float8=True)),
    (90, Case(new=1, past=257, dtype="float16", keys="repeated", padded=True, batch=2, static=300, float8=True)),
    (100, Case(new=1, past=130, width=72, dtype="bfloat16", keys=0.99, heads=1, float8=True, training=True)),
    (100, Case(new=1, past=257, width=32, dtype="float16", keys=0.99, heads=1, groups=15, float8=True)),
    (120, Case(new=1, past=70, dtype="bfloat16", keys=0.99, heads=1, float8=True)),
]


@pytest.mark.parametrize(("arch", "case"), CASES, ids=str)
def test_error_is_that_of_rounding(arch, case, compiled):
    launcher = compiled(arch)
    result = run_decode(dataclasses.replace(case, arch=arch))
    assert within_gate(result["error"], result["plain"], case.dtype), result
    assert within_gate(result["y_error"], result["y_plain"], case.dtype), result
    assert result["padding_is_v"]
    assert len(launcher.launched) == 2 and ("float8" in launcher.launched[0]) == case.float8


# One program for each head and tile of rows, as in large batches: its loop runs several times, in other cases once.
# With 64 rows on 10.0, the barrier of the next iteration's MMA also waits for an MMA of this iteration.
PASSES = [
    (80, Case(new=5, past=130, width=256, dtype="bfloat16", keys=0.99, padded=True, batch=2, heads=1)),
    (80, Case(new=6, past=100, width=132, dtype="float16", keys="repeated", heads=1)),
    (80, Case(new=5, past=100, width=128, dtype="float16", keys=0.99, heads=1)),
    (80, Case(new=10, past=100, width=128, dtype="bfloat16", keys=0.99, padded=True, batch=2, heads=1)),
    (80, Case(new=9, past=130, width=64, dtype="float16", keys="repeated", heads=1, training=True)),
    (86, Case(new=4, past=100, width=32, keys=0.99, padded=True, batch=2, heads=1)),
    (86, Case(new=1, past=430, dtype="float16", keys=0.99, padded=True, batch=2, heads=1)),
    (90, Case(new=1, past=300, width=128, keys=0.99, padded=True, batch=2, heads=1)),
    (100, Case(new=1, past=430, dtype="bfloat16", keys="repeated", heads=1)),
    (90, Case(new=1, past=430, keys="repeated", heads=1)),
    (90, Case(new=1, past=600, dtype="bfloat16", keys=0.99, padded=True, batch=2, heads=1, float8=True)),
    (100, Case(new=1, past=430, width=128, dtype="float16", keys="repeated", heads=1, float8=True)),
    (100, Case(new=1, past=300, width=128, keys="repeated", padded=True, batch=2, heads=1)),
    (100, Case(new=1, past=430, width=32, keys=0.99, heads=1, groups=15)),
    (90, Case(new=1, past=430, width=64, dtype="float16", keys="repeated", heads=1, groups=15)),
    (90, Case(new=1, past=600, width=64, dtype="bfloat16", keys=0.99, padded=True, batch=2, heads=1, float8=True)),
    (100, Case(new=1, past=600, width=32, dtype="float16", keys="repeated", heads=1, groups=8, float8=True)),
    (90, Case(new=1, past=430, width=24, keys=0.99, padded=True, batch=2, heads=1)),
    (90, Case(new=1, past=430, width=48, dtype="float16", keys="repeated", heads=1)),
    (100, Case(new=1, past=430, keys=0.99, padded=True, batch=2, heads=1)),
    (100, Case(new=1, past=430, width=28, keys="repeated", heads=1, training=True)),
    (100, Case(new=1, past=300, width=128, keys=0.99, padded=True, batch=2, heads=1)),
    (100, Case(new=8, past=230, dtype="float16", keys="repeated", padded=True, batch=2, heads=1, float8=True)),
    (120, Case(new=6, past=200, width=128, dtype="bfloat16", keys=0.99, heads=1)),
    (90, Case(new=5, past=200, width=128, dtype="float16", keys=0.99, padded=True, batch=2, heads=1)),
    (90, Case(new=8, past=100, width=256, dtype="bfloat16", keys=0.9, heads=1)),
    (90, Case(new=8, past=100, width=128, keys="repeated", heads=1, training=True)),
    (100, Case(new=10, past=200, width=128, dtype="bfloat16", keys=0.9, heads=1)),
    (100, Case(new=5, past=100, width=128, keys=0.99, heads=1)),
]


@pytest.mark.parametrize(("arch", "case"), PASSES, ids=str)
def test_error_is_that_of_rounding_after_several_tiles(arch, case, compiled, monkeypatch):
    monkeypatch.setattr(plan, "TARGET_PROGRAMS", 1)
    compiled(arch)
    result = run_decode(dataclasses.replace(case, arch=arch))
    assert within_gate(result["error"], result["plain"], case.dtype), result
    assert within_gate(result["y_error"], result["y_plain"], case.dtype), result
    assert result["padding_is_v"]
