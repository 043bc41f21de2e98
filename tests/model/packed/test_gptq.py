"""AutoGPTQ's layout, by loops over its formula; by its package in tests/compat/test_packed_layouts.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lucid_deploy.model.packed.gptq import GptqLayout
from tests.model.packed.packing import SETTINGS, stored

WEIGHT = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["gptq", "gptq_v2", "gptq8"])
def test_numbers(kind: str) -> None:
    parts, meant = stored(kind, WEIGHT)
    layout = GptqLayout.from_settings(SETTINGS[kind])
    assert layout.shape({name: tuple(part.shape) for name, part in parts.items()}) == (24, 48)
    weight = layout.read(parts)
    assert weight.dequantize().double().equal(meant) and weight.is_symmetric == (kind != "gptq_v2")
    other = GptqLayout(layout.bits, layout.group_size, not layout.zeros_less_one).read(parts)
    assert not other.dequantize().double().equal(meant), "one more or less in every zero point"
    form = "gptq" if layout.zeros_less_one else "gptq_v2"
    renamed = {**SETTINGS[kind], "checkpoint_format": None, "format": form}
    assert GptqLayout.from_settings(renamed) == layout, "as transformers 5 spells it"


def test_inputs_in_another_order() -> None:
    parts, meant = stored("gptq", WEIGHT)
    layout = GptqLayout.from_settings({**SETTINGS["gptq"], "desc_act": True})
    assert layout.read(parts).dequantize().double().equal(meant), "static groups"
    with pytest.raises(ValueError, match=r"another order .*g_idx.*static_groups=True"):
        layout.read({**parts, "g_idx": parts["g_idx"].flip(0)})


def test_zero_points_that_mean_two_things() -> None:
    parts, _ = stored("gptq", WEIGHT)
    with pytest.raises(ValueError, match=r"stored as 15 .*gptq_v2"):
        GptqLayout.from_settings(SETTINGS["gptq"]).read({**parts, "qzeros": torch.full_like(parts["qzeros"], -1)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 3}, "bits are 3"),
        ({"bits": True}, "bits are True"),
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": "16"}, "group_size is '16'"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'"),
        ({"dynamic": {"-:.*": {}}}, "dynamic"),
        ({"pack_dtype": "int16"}, "pack_dtype"),
        ({"rotation": "hadamard"}, "its 'rotation' is not known here"),
        ({"is_marlin_format": True}, "is_marlin_format"),
        ({"format": "gptq_v2", "checkpoint_format": "gptq"}, "checkpoint_format is 'gptq(_v2)?' and 'gptq"),
    ],
)
def test_settings_that_are_not_read(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GptqLayout.from_settings({**SETTINGS["gptq"], **change})
