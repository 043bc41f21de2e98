"""Sizes, limits and tuned constants that all plans share. Needs no Triton."""

from __future__ import annotations

import pytest

from lucid_deploy.plugins.decode_attention.plan import TUNED as DECODE_TUNED
from lucid_deploy.plugins.shared import plan


@pytest.mark.parametrize("width", [0, 15, 257])
def test_unsupported_widths_are_refused(width):
    with pytest.raises(ValueError, match=f"head width {width} is not supported: the kernels take 16 to 256"):
        plan.padded_width(width)


@pytest.mark.parametrize(
    ("width", "dtype", "unit"), [(64, "float16", 8), (68, "bfloat16", 4), (64, "float32", 4), (17, "float16", 1)]
)
def test_the_unit_is_the_widest_aligned_load(width, dtype, unit):
    assert plan.width_unit(width, dtype) == unit
    assert unit == 1 or unit in plan.compiled_units(dtype)


def test_a_newer_device_uses_the_next_older_choices():
    assert plan.choice(DECODE_TUNED, 121, "float16", 64) == plan.choice(DECODE_TUNED, 120, "float16", 64)
    with pytest.raises(ValueError, match=r"compute capability 7\.5 is too old: the oldest supported is 8\.0"):
        plan.choice(DECODE_TUNED, 75, "float16", 64)
