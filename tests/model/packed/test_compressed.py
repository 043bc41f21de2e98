"""compressed-tensors' layouts, by loops over its formula; its package: tests/compat/test_packed_layouts.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lucid_deploy.model.packed.compressed import CompressedLayout
from tests.model.packed.packing import SETTINGS, compressed_settings, numbers, stored

WEIGHT = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["packed", "packed8", "integers"])
def test_numbers(kind: str) -> None:
    parts, meant = stored(kind, WEIGHT)
    layout = CompressedLayout.from_settings(SETTINGS[kind])
    assert set(layout.required) == parts.keys()
    assert layout.shape({name: tuple(part.shape) for name, part in parts.items()}) == (24, 48)
    assert layout.read(parts).dequantize().double().equal(meant)


def test_zero_points_in_int8_and_one_scale() -> None:
    codes, zeros, scales = numbers(WEIGHT, 8, 48, False)
    parts = {
        "weight": (codes.int() - 128).to(torch.int8),
        "weight_scale": scales,
        "weight_zero_point": (zeros.int() - 128).to(torch.int8),
    }
    layout = CompressedLayout.from_settings(compressed_settings("int-quantized", 8, "channel", None, False))
    wanted = (codes.double() - zeros.double()) * scales.double()
    assert layout.read(parts).dequantize().double().equal(wanted)
    whole = CompressedLayout.from_settings(compressed_settings("int-quantized", 8, "tensor", None, True))
    found = whole.read({"weight": parts["weight"], "weight_scale": scales[:1, :1]})
    assert found.dequantize().double().equal((codes.double() - 128) * scales[0, 0].double())


def test_parts_that_are_not_read() -> None:
    parts, _ = stored("packed", WEIGHT)
    layout = CompressedLayout.from_settings(SETTINGS["packed"])
    with pytest.raises(ValueError, match=r"another order .*weight_g_idx.*static"):
        layout.read({**parts, "weight_g_idx": torch.arange(48, dtype=torch.int32) % 3})
    with pytest.raises(ValueError, match=r"weight_shape is \[24, 40\]"):
        layout.read({**parts, "weight_shape": torch.tensor([24, 40])})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "float-quantized"}, "format is 'float-quantized'"),
        ({"format": "marlin-24"}, "format is 'marlin-24'"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({"config_groups": {}}, "0 config_groups"),
        ({"config_groups": {"a": {"weights": {}, "input_activations": {"num_bits": 8}}}}, "input_activations"),
        ({"config_groups": {"a": {"weights": {"type": "float", "num_bits": 8}}}}, "'float' of 8 bits"),
        ({"config_groups": {"a": {"weights": {"type": "int", "num_bits": 3}}}}, "'int' of 3 bits"),
        ({"config_groups": {"a": {"weights": {"type": "int", "num_bits": 4, "strategy": "block"}}}}, "strategy"),
        ({"config_groups": {"a": {"weights": {"type": "int", "num_bits": 4, "strategy": "group"}}}}, "group_size"),
    ],
)
def test_settings_that_are_not_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompressedLayout.from_settings({**SETTINGS["packed"], **settings})
