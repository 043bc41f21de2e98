"""The launches of the preconditioner's kernel. Needs no Triton."""

from __future__ import annotations

import pytest

from lucid_deploy.plugins.precondition.plan import plan_precondition, variants
from lucid_deploy.plugins.shared.plan import Choice, Plan


def solve(**changes) -> Plan:
    sizes = {"batch": 2, "heads": 3, "new": 130, "past": 7, "width": 68, "dtype": "float16", "epsilon": 1e-5}
    return plan_precondition(**sizes | {"arch": 90} | changes)


def test_the_grid_has_a_program_per_block_row_and_head():
    norms, step = solve().steps
    assert norms.grid == (6, -(-137 // norms.constants["BLOCK_N"]), 1)
    assert step.grid == (-(-130 // step.constants["BLOCK_M"]) * 6, 1, 1)


def test_the_float32_workspace_has_powers_of_two():
    plan = solve(dtype="float32")
    assert plan.workspace_bytes >= 4 * (1 + 6) + 4 * 6 * (137 + 1 + -(-130 // plan.steps[1].constants["BLOCK_M"]))
    assert "Y_past" in plan.steps[0].pointers and plan.steps[0].constants["BLOCK_N"] == 64


@pytest.mark.parametrize("arch", [80, 120])
@pytest.mark.parametrize(("new", "past"), [(1, 0), (130, 7)])
def test_the_workspace_has_room_for_int8_tiles_of_every_size(arch, new, past):
    keys, step = solve(dtype="bfloat16", arch=arch, new=new, past=past).steps
    tokens, padded = step.constants["BLOCK_N"], step.constants["BLOCK_D"]
    tiles = -(-past // tokens) + -(-new // tokens)
    assert keys.kernel == "key_tiles_kernel" and keys.grid[1] == tiles and keys.constants["BLOCK_N"] == tokens
    room = solve(dtype="bfloat16", arch=90, new=new, past=past).workspace_bytes
    assert room >= 256 + 6 * tiles * (4 * tokens + 4 * padded + tokens * padded)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 15}, "head width 15 is not supported"),
        ({"width": 257}, "head width 257 is not supported"),
        ({"new": 0}, "new must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"arch": 75}, "compute capability 7.5 is too old"),
        ({"dtype": "float32", "tuned": Choice(128, 128, 4, 2)}, "float32 needs tiles that divide 64 .*, not of 128"),
        ({"tuned": Choice(32, 64, 4, 2)}, "at least 16 tokens, .* and be whole tiles, not 32 tokens and tiles of 64"),
        ({"tuned": Choice(8, 8, 4, 2)}, "at least 16 tokens, .* not 8 tokens and tiles of 8"),
        ({"tuned": Choice(64, 64, 4, 2, int8=1)}, "int8 needs tensors of bfloat16 and .*, not float16 and 64 × 64"),
        ({"dtype": "bfloat16", "tuned": Choice(128, 128, 4, 2, int8=1)}, "int8 needs .*, not bfloat16 and 128 × 128"),
        (
            {"dtype": "bfloat16", "tuned": Choice(64, 32, 4, 2, int8=1)},
            "int8 needs .* square tiles .* and 64 × 32",
        ),
    ],
)
def test_unsupported_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        solve(**changes)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("width", [36, 128, 256])
def test_every_launch_has_a_compiled_variant(width, dtype):
    for step in solve(width=width, dtype=dtype).steps:
        [variant] = [each for each in variants(90) if each.name == step.variant]
        assert (dict(variant.constants), variant.num_warps) == (step.constants, step.num_warps)
        assert variant.num_stages == step.num_stages
