"""AutoAWQ's layout, by loops over its formula; by a package in tests/compat/test_packed_layouts.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lucid_deploy.model.packed.awq import AwqLayout
from tests.model.packed.packing import SETTINGS, stored


def test_numbers() -> None:
    parts, meant = stored("awq", torch.randn(24, 48, generator=torch.Generator().manual_seed(0)))
    layout = AwqLayout.from_settings(SETTINGS["awq"])
    assert layout.shape({name: tuple(part.shape) for name, part in parts.items()}) == (24, 48)
    weight = layout.read(parts)
    assert weight.dequantize().double().equal(meant) and not weight.is_symmetric
    older = {"quant_method": "awq", "w_bit": 4, "q_group_size": 16, "version": "GEMM"}
    assert AwqLayout.from_settings(older) == layout
    assert AwqLayout.from_settings({**SETTINGS["awq"], "method": "awq", "backend": "autoawq"}) == layout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "gemv"}, "version is 'gemv'"),
        ({"version": None, "format": "gemv"}, "format is 'gemv'"),
        ({"dynamic": {"-:x": {}}}, "dynamic"),
        ({"zeta": 3}, "its 'zeta' is not known here"),
        ({"bits": 8}, "bits are 8"),
        ({"zero_point": False}, "zero_point is false"),
        ({"backend": "llm-awq"}, "backend is 'llm-awq'"),
        ({"method": "gptq"}, "method is 'gptq', and its quant_method awq"),
        ({"group_size": None}, "group_size is None"),
        ({"w_bit": 8}, "bits is 4 and its w_bit 8"),
        ({"q_group_size": 128}, "group_size is 16 and its q_group_size 128"),
    ],
)
def test_settings_that_are_not_read(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AwqLayout.from_settings({**SETTINGS["awq"], **change})
