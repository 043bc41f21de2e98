"""The launches of decode attention's kernels. Needs no Triton."""

from __future__ import annotations

import pytest

from lucid_deploy.plugins.decode_attention.plan import MAX_SPLITS, plan_decode_attention, query_rows, variants
from lucid_deploy.plugins.shared.plan import Choice, Plan
from lucid_deploy.plugins.table import DECODE_ATTENTION, DECODE_ATTENTION_FLOAT8


def decode(**changes) -> Plan:
    sizes = {"batch": 2, "heads": 3, "groups": 4, "past": 1000, "width": 68, "dtype": "float16", "epsilon": 1e-5}
    return plan_decode_attention(**sizes | {"arch": 90} | changes)


def test_tensors_are_those_of_the_table():
    known = {*DECODE_ATTENTION.input_names, *DECODE_ATTENTION.output_names, "workspace"}
    for new in (1, 8):
        assert {name for step in decode(new=new).steps for name in step.pointers} == known


def test_a_cache_of_e4m3_has_scales():
    for new in (1, 8):
        plan, plain = decode(width=72, new=new, float8=True), decode(width=72, new=new)
        known = {*DECODE_ATTENTION_FLOAT8.input_names, *DECODE_ATTENTION_FLOAT8.output_names, "workspace"}
        assert {name for step in plan.steps for name in step.pointers} == known
        assert plan.steps[1] == plain.steps[1] and plan.workspace_bytes == plain.workspace_bytes
    assert not [each for each in variants(86) if "float8" in each.name]


def test_memory_does_not_grow_with_the_tokens():
    assert decode(past=1 << 20).workspace_bytes == decode(past=1).workspace_bytes


def test_splits_fill_the_device():
    assert decode(batch=1, heads=4, past=32768).steps[0].grid == (4, 64, 1)
    assert decode(batch=1, heads=1, past=32768).steps[0].grid == (1, MAX_SPLITS, 1)
    assert decode(batch=64, heads=8, past=32768).steps[0].grid == (512, 1, 1)
    assert decode(past=0).steps[0].grid == (6, 1, 1)
    assert decode(groups=71).steps[0].grid[2] == 2  # 64 of the 71 query heads and the new key a tile
    assert decode(new=8).steps[0].grid[2] == 1  # 8 tokens of 4 query heads, and their keys: 40 rows in a tile of 64
    assert decode(new=16).steps[0].grid[2] == 2


@pytest.mark.parametrize("past", [0, 1, 100, 5000, 100_000])
@pytest.mark.parametrize("batch_heads", [1, 3, 7, 128, 255, 256, 300])
def test_the_workspace_of_the_largest_batch_serves_every_smaller_one(past, batch_heads):
    planned = decode(batch=batch_heads, heads=1, past=past)
    splits = planned.steps[0].scalars["n_splits"]
    assert batch_heads * splits * 5 * (68 + 2) * 4 <= planned.workspace_bytes
    assert planned.workspace_bytes <= decode(batch=300, heads=1, past=past).workspace_bytes


@pytest.mark.parametrize("arch", [80, 86, 89, 110, 120])
@pytest.mark.parametrize(("head_rows", "rows"), [(2, 16), (16, 16), (17, 32), (32, 32), (33, 64), (80, 64)])
def test_a_tile_holds_the_queries_and_the_new_keys(head_rows, rows, arch):
    assert query_rows(head_rows, "bfloat16", 128, arch) == query_rows(head_rows, "float32", 64, arch) == rows
    assert query_rows(head_rows, "bfloat16", 256, arch) == min(rows, 32)
    assert query_rows(head_rows, "float32", 128, arch) == min(rows, 32)
    assert query_rows(head_rows, "float32", 256, arch) == 16


@pytest.mark.parametrize("arch", [90, 100, 103])
@pytest.mark.parametrize(("head_rows", "rows"), [(2, 16), (16, 16), (17, 64), (32, 64), (33, 64), (80, 64)])
def test_where_warps_multiply_in_groups_more_than_16_rows_take_64(head_rows, rows, arch):
    assert query_rows(head_rows, "bfloat16", 256, arch) == query_rows(head_rows, "float32", 128, arch) == rows
    assert query_rows(head_rows, "float32", 256, arch) == 16


@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize(
    ("dtype", "width", "tokens", "columns"),
    [
        *(("float32", width, *tile) for width, tile in ((32, (64, 32)), (64, (32, 32)), (128, (32, 32)))),
        *(("float16", width, *tile) for width, tile in ((32, (64, 32)), (64, (64, 32)), (128, (64, 64)))),
        ("bfloat16", 256, 32, 64),
    ],
)
def test_tiles_of_64_rows_where_warps_multiply_in_groups(arch, dtype, width, tokens, columns):
    [step] = decode(arch=arch, width=width, dtype=dtype, new=8).steps[:1]
    assert (step.constants["ROWS"], step.constants["BLOCK_N"], step.constants["CHUNK_D"]) == (64, tokens, columns)
    assert step.num_warps == 4 and step.num_stages <= (2 if dtype == "float32" else 3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("width", [20, 36, 68, 132])
@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
def test_narrow_loads_take_the_tile_of_the_widest_and_at_least_four_warps(arch, width, dtype):
    narrow, widest = (decode(arch=arch, width=each, dtype=dtype, groups=1).steps[0] for each in (width, width + 4))
    changed = {"WIDTH_UNIT": 4}
    if "PARTS" in widest.constants:
        changed |= {"PARTS": 4, "BLOCK_N": min(widest.constants["BLOCK_N"], 128)}  # others would spill
    assert narrow.constants == widest.constants | changed and widest.constants["WIDTH_UNIT"] == 8
    assert narrow.num_warps == 4 >= widest.num_warps


@pytest.mark.parametrize("arch", [80, 86, 89, 90, 100, 120])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_padded_width_is_compiled_in_where_rows_are_few(dtype, arch):
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


@pytest.mark.parametrize(("arch", "has_parts"), [(89, False), (90, True), (100, True), (120, False)])
@pytest.mark.parametrize(
    ("dtype", "float8"),
    [("float32", False), ("float16", False), ("bfloat16", False), ("float16", True), ("bfloat16", True)],
)
def test_up_to_8_rows_have_a_form_where_each_warp_has_a_part_of_a_tile_of_the_head_s_width(
    dtype, float8, arch, has_parts
):
    for width in (32, 64, *([128] if dtype == "float32" or float8 or arch == 100 else [])):
        of = {"arch": arch, "width": width, "dtype": dtype, "float8": float8}
        for groups, new, rows in ((1, 1, 8), (7, 1, 8), (3, 2, 8), (1, 4, 8), (8, 1, 16), (2, 3, 16), (15, 1, 16)):
            constants = decode(**of, groups=groups, new=new).steps[0].constants
            assert constants["ROWS"] == (rows if has_parts else 16) and (
                "PARTS" in constants or not has_parts or rows == 16
            )
        assert decode(**of | {"width": width - 8}, groups=1).steps[0].constants["ROWS"] == 16
    assert decode(arch=arch, width=256, dtype=dtype, float8=float8, groups=1).steps[0].constants["ROWS"] == 16


@pytest.mark.parametrize("arch", [90, 100])
@pytest.mark.parametrize("width", [16, 28, 36, 60])
def test_float32_of_a_padded_width_has_four_warps_and_tiles_that_do_not_spill(arch, width):
    padded = 32 if width <= 32 else 64
    step = decode(arch=arch, width=width, dtype="float32").steps[0]
    assert step.num_warps == 4 and step.constants["BLOCK_N"] * padded <= 4096


@pytest.mark.parametrize(("arch", "adds"), [(89, 0), (90, 1), (100, 1), (103, 1), (120, 0)])
@pytest.mark.parametrize("width", [32, 64, 128, 256])
def test_tensor_cores_add_squares_of_e4m3_where_they_have_time_and_no_warp_has_a_part(arch, adds, width):
    one, several = (
        decode(arch=arch, width=width, dtype="float16", float8=True, new=new).steps[0].constants for new in (1, 8)
    )
    of_half = {"ADD_SQUARES": adds, "Y_BY_FLOAT32": int(arch < 100)}
    assert one.items() >= ({"PARTS": 4} if adds and width <= 128 else of_half).items()
    assert several.items() >= (of_half | {"ADD_SQUARES": 0}).items() and "PARTS" not in several


@pytest.mark.parametrize("arch", [90, 100, 103])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tiles_of_e4m3_with_parts_are_those_that_do_not_spill(dtype, arch):
    tokens = {16: 256, 32: 256, 40: 128, 64: 128, 72: 64, 120: 64, 128: 128}
    of_few_rows = {32: 256, 64: 256, 128: 128}
    for groups, of_rows in ((15, tokens), (4, tokens | of_few_rows)):
        for width, wanted in of_rows.items():
            step = decode(arch=arch, width=width, dtype=dtype, groups=groups, float8=True).steps[0]
            assert (step.constants["BLOCK_N"], step.constants["PARTS"], step.num_warps) == (wanted, 4, 4)
    assert "PARTS" not in decode(arch=arch, width=136, dtype=dtype, float8=True).steps[0].constants


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("arch", "has_parts"), [(80, 0), (86, 0), (89, 0), (90, 1), (100, 1), (103, 1), (120, 0)])
def test_each_warp_has_a_part_of_a_tile_of_few_rows(arch, has_parts, dtype):
    most = 64 if arch == 90 or dtype == "float32" else 128
    for width in (16, 36, 64, *([] if most == 64 else [68, 128])):
        step = decode(arch=arch, width=width, dtype=dtype).steps[0]
        assert step.constants.get("PARTS") == (step.num_warps if has_parts else None)
        takes_two = has_parts and arch >= 100 and dtype == "float32"
        assert step.constants.get("PAIRS") == (1 if takes_two else None), "instructions of two float32 numbers"
    for other in ({"width": most + 4}, {"new": 8}):
        assert "PARTS" not in decode(**{"arch": arch, "width": 64, "dtype": dtype} | other).steps[0].constants
    tuned = Choice(0, 16, 4, 2)
    if has_parts:
        step = decode(arch=arch, width=64, dtype=dtype, tuned=tuned).steps[0]
        assert step.constants["PARTS"] == 1, "16 tokens at least"


@pytest.mark.parametrize(("arch", "has_parts"), [(90, False), (100, True), (103, True), (120, False)])
def test_float32_heads_of_just_128_have_parts_where_instructions_take_two_numbers(arch, has_parts):
    of = {"arch": arch, "dtype": "float32", "groups": 15}
    found = {width: decode(**of, width=width).steps[0].constants for width in (124, 128, 256)}
    assert [width for width, each in found.items() if "PARTS" in each] == [128] * has_parts
    assert found[128].get("PAIRS", 0) == has_parts and found[128]["CHUNK_D"] == (16 if has_parts else 32)


@pytest.mark.parametrize(("arch", "adds"), [(80, 1), (86, 0), (87, 0), (89, 0), (90, 1), (100, 1), (103, 1), (120, 0)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensor_cores_add_the_squares_of_the_half_types_for_few_rows_and_on_8_0_for_any(dtype, arch, adds):
    for width in (32, 36, 64, 128, 132, 256):
        of_rows = [decode(arch=arch, width=width, dtype=dtype, new=new).steps[0].constants for new in (1, 4, 8)]
        several, one = adds if arch == 80 else 0, 0 if "PARTS" in of_rows[0] else adds
        assert [each.get("ADD_SQUARES", 0) for each in of_rows] == [one, several, several]
        assert "ADD_SQUARES" not in decode(arch=arch, width=width, dtype="float32").steps[0].constants


@pytest.mark.parametrize(
    ("dtype", "float8", "arch"),
    [
        *((dtype, False, arch) for dtype in ("float32", "float16", "bfloat16") for arch in (80, 86, 89, 120)),
        *(("bfloat16", True, arch) for arch in (89, 120)),
    ],
)
def test_warps_do_not_compute_a_product_of_32_rows_twice(dtype, float8, arch):
    """Of 32 columns two warps do, one for 16 rows each; of 64 four do."""
    for width in (32, 64, 128):
        step = decode(arch=arch, width=width, dtype=dtype, new=4, float8=float8).steps[0]
        assert step.constants["ROWS"] == 32 and step.constants["CHUNK_D"] == 16 * step.num_warps, width


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 257}, "head width 257 is not supported"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"new": 17}, "up to 16 new tokens are supported, not 17"),
        ({"arch": 75}, "compute capability 7.5 is too old"),
        ({"width": 68, "float8": True}, "head width 68 is not supported: with a cache of E4M3 multiples of 8 are"),
        ({"arch": 86, "float8": True}, "compute capability 8.6 has no E4M3"),
    ],
)
def test_what_the_kernels_do_not_take_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        decode(**changes)


@pytest.mark.parametrize(
    ("dtype", "float8"),
    [("float32", False), ("float16", False), ("bfloat16", False), ("float16", True), ("bfloat16", True)],
)
@pytest.mark.parametrize("width", [16, 36, 64, 128, 256])
@pytest.mark.parametrize(("groups", "new"), [(4, 1), (16, 1), (4, 8), (4, 16)])
def test_every_plan_finds_its_compiled_forms(width, dtype, float8, groups, new):
    width += 4 if float8 and width % 8 else 0
    for step in decode(width=width, dtype=dtype, groups=groups, new=new, float8=float8).steps:
        [variant] = [each for each in variants(90) if each.name == step.variant]
        assert (dict(variant.constants), variant.num_warps) == (step.constants, step.num_warps)
        assert variant.num_stages == step.num_stages


@pytest.mark.parametrize(("width", "tokens"), [(32, 64), (64, 64), (128, 32), (256, 32)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tiles_of_more_rows_on_8_0_hold_64_tokens_of_narrow_heads_in_the_half_types(dtype, width, tokens):
    for new in (4, 8):
        assert decode(arch=80, width=width, dtype=dtype, new=new).steps[0].constants["BLOCK_N"] == tokens
        longest = 64 if width == 32 and new == 4 else 32
        assert decode(arch=86, width=width, dtype=dtype, new=new).steps[0].constants["BLOCK_N"] == longest
