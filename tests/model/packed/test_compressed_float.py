"""``float-quantized`` of compressed-tensors: settings, and the parts that follow; numbers: test_float_weight.py."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.model.packed.compressed_float import CompressedFloatLayout
from lucid_deploy.model.packed.float_weight import InputRounding
from tests.model.packed.floats import GROUP, STATIC, TOKEN, compressed_float


@pytest.mark.parametrize(
    ("strategy", "rounding", "inputs"),
    [
        ("tensor", None, None),
        ("tensor", STATIC, InputRounding("static")),
        ("channel", TOKEN, InputRounding("token")),
        ("block", GROUP, InputRounding("group", 16)),
    ],
)
def test_settings(strategy: str, rounding: Any, inputs: InputRounding | None) -> None:
    layout = CompressedFloatLayout.from_settings(compressed_float(strategy, rounding, [128, 128]))
    assert (layout.strategy, layout.inputs) == (strategy, inputs)
    assert ("input_scale" in layout.required) == (rounding is STATIC)
