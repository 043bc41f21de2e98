"""compressed-tensors' layouts, by loops over its formula; its package: tests/compat/test_packed_layouts.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lucid_deploy.model.packed.compressed import CompressedLayout
from tests.model.packed.packing import SETTINGS, compressed_settings, numbers, stored

INTEGERS = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 16}
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


@pytest.mark.parametrize("actorder", ["group", "dynamic", True])
def test_an_order_of_inputs_that_is_not_stored(actorder: Any) -> None:
    """Groups are then those of weight_g_idx alone: without it nothing says which inputs share a scale."""

    def layout(order: Any, strategy: str = "group") -> CompressedLayout:
        settings = compressed_settings("pack-quantized", 4, strategy, 16, True)
        settings["config_groups"]["group_0"]["weights"]["actorder"] = order
        return CompressedLayout.from_settings(settings)

    assert "weight_g_idx" in layout(actorder).required
    assert all("weight_g_idx" not in layout(other).required for other in (None, False, "weight", "static"))
    assert "weight_g_idx" not in layout(actorder, "channel").required


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
        ({"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}}, "transform_config turns"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ({"zeta": 3}, "its 'zeta' is not known here"),
        ({"config_groups": {"a": {"zeta": 3}}}, "its config_groups' 'zeta' is not known here"),
        ({"config_groups": {"a": {"format": "int-quantized"}}}, "that of its config_groups 'int-quantized'"),
        ({"config_groups": {"a": {"weights": {"zeta": 3}}}}, "its weights' 'zeta' is not known here"),
        ({"config_groups": {}}, "0 config_groups"),
        ({"config_groups": {"a": {"weights": {}, "input_activations": {"num_bits": 8}}}}, "input_activations"),
        ({"config_groups": {"a": {"weights": {"type": "float", "num_bits": 8}}}}, "'float' of 8 bits"),
        ({"config_groups": {"a": {"weights": {**INTEGERS, "actorder": "best"}}}}, "actorder is 'best'"),
        ({"config_groups": {"a": {"weights": {**INTEGERS, "dynamic": True}}}}, "weights' dynamic is True"),
        ({"config_groups": {"a": {"weights": {"type": "int", "num_bits": 3}}}}, "'int' of 3 bits"),
        ({"config_groups": {"a": {"weights": {"type": "int", "num_bits": 4, "strategy": "block"}}}}, "strategy"),
        ({"config_groups": {"a": {"weights": {"type": "int", "num_bits": 4, "strategy": "group"}}}}, "group_size"),
    ],
)
def test_settings_that_are_not_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompressedLayout.from_settings({**SETTINGS["packed"], **settings})


def test_keys_that_change_nothing() -> None:
    more = {"version": "0.14", "transform_config": {}, "sparsity_config": {}, "kv_cache_scheme": None, "zeta": None}
    assert CompressedLayout.from_settings({**SETTINGS["packed"], **more}) == CompressedLayout.from_settings(
        SETTINGS["packed"]
    )


@pytest.mark.parametrize(
    ("form", "strategy", "symmetric", "change", "message"),
    [
        (
            "int-quantized",
            "channel",
            True,
            {"weight_scale": (24, 3)},
            r"weight_scale .*\[24, 3\].* channel .*\[24, 1\]",
        ),
        ("int-quantized", "channel", True, {"weight_scale": (1, 1)}, "weight_scale"),
        ("int-quantized", "tensor", True, {"weight_scale": (24, 1)}, r"strategy tensor asks for .*\[1\]"),
        ("int-quantized", "channel", False, {"weight_zero_point": (12, 1)}, "weight_zero_point"),
        ("pack-quantized", "group", False, {"weight_zero_point": (6, 2)}, r"weight_zero_point .*\[6, 3\]"),
        ("pack-quantized", "group", False, {"weight_scale": (24, 2)}, "weight_scale"),
        ("pack-quantized", "group", True, {"weight_g_idx": (47,)}, "weight_g_idx"),
        ("pack-quantized", "group", True, {"weight_shape": (3,)}, "weight_shape"),
    ],
)
def test_shapes_of_parts(form: str, strategy: str, symmetric: bool, change: Any, message: str) -> None:
    layout = CompressedLayout.from_settings(compressed_settings(form, 8, strategy, 16, symmetric))
    scale = {"group": (24, 3), "channel": (24, 1), "tensor": (1,)}[strategy]
    packed = {"weight_packed": (24, 12), "weight_shape": (2,)}
    shapes = {**(packed if layout.is_packed else {"weight": (24, 48)}), "weight_scale": scale}
    if not symmetric:
        shapes["weight_zero_point"] = (6, 3) if layout.is_packed else scale
    assert layout.shape(shapes) == (24, 48)
    with pytest.raises(ValueError, match=message):
        layout.shape({**shapes, **change})


def test_zero_points_of_another_type_than_their_shape() -> None:
    parts, _ = stored("packed", WEIGHT)
    layout = CompressedLayout.from_settings(SETTINGS["packed"])
    with pytest.raises(ValueError, match="weight_zero_point has 24 rows of words for 24 outputs"):
        layout.read({**parts, "weight_zero_point": torch.zeros(24, 3, dtype=torch.int32)})
    with pytest.raises(ValueError, match="weight_zero_point has 3 rows for 24 outputs"):
        layout.read({**parts, "weight_zero_point": torch.zeros(3, 3, dtype=torch.int8)})
