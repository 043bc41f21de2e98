"""The launches of the delta rule's kernels. Needs no Triton."""

from __future__ import annotations

import pytest

from lucid_deploy.plugins.delta_rule.plan import LARGEST_CHUNK, plan_delta_rule, variants
from lucid_deploy.plugins.shared.plan import Plan
from lucid_deploy.plugins.table import FLOATS


def rule(**changes) -> Plan:
    sizes = {"batch": 2, "heads": 3, "new": 130, "key_width": 68, "value_width": 100, "dtype": "float16"}
    return plan_delta_rule(**sizes | {"scale": 0.5, "arch": 90} | changes)


def test_grids_of_several_tokens():
    chunk, state = rule().steps
    assert chunk.grid == (-(-130 // chunk.constants["BLOCK_M"]), 6, 1)
    assert state.grid == (6, -(-100 // state.constants["BLOCK_N"]), 1)
    assert rule().zeroed_bytes == 0


def test_the_workspace_is_proportional_to_the_tokens():
    size = LARGEST_CHUNK
    numbers = 2 * size * (size + 1)  # T, weights of queries, and the decays from the beginning and to the end
    assert rule(new=10 * size).workspace_bytes == 10 * rule(new=size).workspace_bytes == 10 * 6 * 4 * numbers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key_width": 15}, "head width 15 is not supported"),
        ({"key_width": 257}, "head width 257 is not supported"),
        ({"value_width": 0}, "value_width must be at least 1"),
        ({"new": 0}, "new must be at least 1"),
        ({"arch": 75}, "compute capability 7.5 is too old"),
    ],
)
def test_unsupported_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        rule(**changes)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("new", "width"), [(1, 36), (70, 256)])
def test_every_launch_has_a_compiled_variant(new, width, dtype):
    for step in rule(new=new, key_width=width, dtype=dtype).steps:
        [variant] = [each for each in variants(90) if each.name == step.variant]
        assert dict(variant.constants) == step.constants
        assert (variant.num_warps, variant.num_stages) == (step.num_warps, step.num_stages)
