"""The launches of decode attention's kernels. Needs no Triton."""

from __future__ import annotations

import pytest

from lucid_deploy.plugins.decode_attention.plan import MAX_SPLITS, plan_decode_attention, variants
from lucid_deploy.plugins.shared.plan import Plan
from lucid_deploy.plugins.table import DECODE_ATTENTION_FLOAT8


def decode(**changes) -> Plan:
    sizes = {"batch": 2, "heads": 3, "groups": 4, "past": 1000, "width": 68, "dtype": "float16", "epsilon": 1e-5}
    return plan_decode_attention(**sizes | {"arch": 90} | changes)


def test_an_e4m3_cache_has_scales():
    for new in (1, 8):
        plan, plain = decode(width=72, new=new, float8=True), decode(width=72, new=new)
        known = {*DECODE_ATTENTION_FLOAT8.input_names, *DECODE_ATTENTION_FLOAT8.output_names, "workspace"}
        assert {name for step in plan.steps for name in step.pointers} == known
        assert plan.steps[1] == plain.steps[1] and plan.workspace_bytes == plain.workspace_bytes
    assert not [each for each in variants(86) if "float8" in each.name]


def test_splits_fill_the_device():
    assert decode(batch=1, heads=4, past=32768).steps[0].grid == (4, 64, 1)
    assert decode(batch=1, heads=1, past=32768).steps[0].grid == (1, MAX_SPLITS, 1)
    assert decode(batch=64, heads=8, past=32768).steps[0].grid == (512, 1, 1)
    assert decode(past=0).steps[0].grid == (6, 1, 1)
    assert decode(groups=71).steps[0].grid[2] == 2  # 64 of the 71 query heads and the new key a tile
    assert decode(new=8).steps[0].grid[2] == 1  # 8 tokens of 4 query heads, and their keys: 40 rows in a tile of 64
    assert decode(new=16).steps[0].grid[2] == 2


@pytest.mark.parametrize("past", [0, 100, 100_000])
@pytest.mark.parametrize("batch_heads", [1, 7, 255, 300])
def test_the_workspace_suffices_for_smaller_batches(past, batch_heads):
    planned = decode(batch=batch_heads, heads=1, past=past)
    splits = planned.steps[0].scalars["n_splits"]
    assert batch_heads * splits * 5 * (68 + 2) * 4 <= planned.workspace_bytes
    assert planned.workspace_bytes <= decode(batch=300, heads=1, past=past).workspace_bytes


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_few_rows_have_variants_for_one_width(dtype, arch):
    widest = 4 if dtype == "float32" else 8
    for width in (32, 64, 128, 256):
        one = decode(arch=arch, width=width, dtype=dtype).steps[0]
        assert one.constants["WIDTH_UNIT"] == width and one.scalars["width_units"] == 1
        for other in (width - 8, width - 16):
            step = decode(arch=arch, width=other, dtype=dtype).steps[0]
            assert (step.constants["WIDTH_UNIT"], step.scalars["width_units"]) == (widest, other // widest)
        several = decode(arch=arch, width=width, dtype=dtype, new=8).steps[0]
        is_one_tile = several.constants["ROWS"] == 16
        assert several.constants["WIDTH_UNIT"] == (width if is_one_tile else widest)
        assert is_one_tile == (width == 256 and dtype == "float32"), "larger tiles do not fit"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 257}, "head width 257 is not supported"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"new": 17}, "up to 16 new tokens are supported, not 17"),
        ({"arch": 75}, "compute capability 7.5 is too old"),
        ({"width": 68, "float8": True}, "head width 68 is not supported: an E4M3 cache needs a multiple of 8"),
        ({"arch": 86, "float8": True}, "compute capability 8.6 has no E4M3"),
    ],
)
def test_unsupported_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        decode(**changes)


@pytest.mark.parametrize(
    ("dtype", "float8"),
    [("float32", False), ("float16", False), ("bfloat16", False), ("float16", True), ("bfloat16", True)],
)
@pytest.mark.parametrize("width", [36, 64, 256])
@pytest.mark.parametrize(("groups", "new"), [(4, 1), (16, 1), (4, 8), (4, 16)])
def test_every_launch_has_a_compiled_variant(width, dtype, float8, groups, new):
    width += 4 if float8 and width % 8 else 0
    for step in decode(width=width, dtype=dtype, groups=groups, new=new, float8=float8).steps:
        [variant] = [each for each in variants(90) if each.name == step.variant]
        assert (dict(variant.constants), variant.num_warps) == (step.constants, step.num_warps)
        assert variant.num_stages == step.num_stages
