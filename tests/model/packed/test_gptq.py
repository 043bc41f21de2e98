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


def test_an_order_of_inputs_that_is_not_stored() -> None:
    """desc_act says that g_idx alone has the groups of inputs; a file without it does not say them."""
    ordered = GptqLayout.from_settings({**SETTINGS["gptq"], "desc_act": True})
    assert "g_idx" in ordered.required
    for change in ({"static_groups": True}, {"group_size": -1}, {"desc_act": False}):
        layout = GptqLayout.from_settings({**SETTINGS["gptq"], "desc_act": True, **change})
        assert "g_idx" not in layout.required, "groups of neighbours, or one group"


@pytest.mark.parametrize(("kind", "zero"), [("gptq", 9), ("gptq8", 129), ("gptq_v2", 7)])
def test_zero_points_of_the_other_format(kind: str, zero: int) -> None:
    """A symmetric file says by its zero points which format it is in: taken for the other, every weight is one off."""
    parts, _ = stored({"gptq_v2": "gptq"}.get(kind, kind), WEIGHT)
    if kind != "gptq_v2":  # stored as they are, and said to be less one
        parts["qzeros"] = parts["qzeros"] + (0x01010101 if kind == "gptq8" else 0x11111111)
    layout = GptqLayout.from_settings({**SETTINGS[kind], "sym": True})
    with pytest.raises(ValueError, match=rf"sym is true, .*\({'gptq_v2' if zero == 7 else 'gptq'}\) {zero} is stored"):
        layout.read(parts)


def test_settings_as_gptqmodel_writes_them() -> None:
    """Its version 7.7 calls the method by two keys, and the format too."""
    more = {"method": "gptq", "format": "gptq", "checkpoint_format": "gptq", "lm_head": False, "pack_dtype": "int32"}
    written = {**SETTINGS["gptq"], **more, "meta": {"quantizer": ["gptqmodel:7.7.0"], "act_group_aware": True}}
    assert GptqLayout.from_settings(written) == GptqLayout.from_settings(SETTINGS["gptq"])


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
        ({"method": "awq"}, "method is 'awq', and its quant_method gptq"),
        ({"sym": "yes"}, "sym is 'yes'"),
        ({"desc_act": 1}, "desc_act is 1"),
        ({"format": "gptq_v2", "checkpoint_format": "gptq"}, "checkpoint_format is 'gptq(_v2)?' and 'gptq"),
    ],
)
def test_settings_that_are_not_read(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GptqLayout.from_settings({**SETTINGS["gptq"], **change})
