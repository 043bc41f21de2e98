"""Layouts of weights in E4M3, by loops over their formula; compressed-tensors' package: tests/compat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.packed.compressed_float import CompressedFloatLayout
from lucid_deploy.model.packed.float_weight import InputRounding
from lucid_deploy.model.packed.fp8 import Fp8Layout
from tests.model.packed.floats import GROUP, KINDS, STATIC, TOKEN, compressed_float, fine_grained, stored, write_floats
from tests.model.packed.packing import change_settings, change_tensors

WEIGHT = torch.randn(72, 48, generator=torch.Generator().manual_seed(0))


def layout_of(kind: str) -> Any:
    settings = KINDS[kind][0]
    return (Fp8Layout if settings["quant_method"] == "fp8" else CompressedFloatLayout).from_settings(settings)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers(kind: str) -> None:
    """72 rows are no multiple of the blocks' 32 and 48, and 48 inputs none of 32."""
    parts, meant = stored(kind, WEIGHT)
    layout = layout_of(kind)
    assert set(layout.required) == parts.keys()
    assert layout.shape({name: tuple(part.shape) for name, part in parts.items()}) == (72, 48)
    weight = layout.read(parts)
    assert weight.dequantize().double().equal(meant)
    assert (weight.input_scale is None) == (KINDS[kind][2] is None)


def test_how_inputs_are_rounded() -> None:
    wanted = {
        "weights": None,
        "static": InputRounding("static"),
        "token": InputRounding("token"),
        "blocks": InputRounding("group", 16),
        "deepseek": InputRounding("group", 16),
        "whole": InputRounding("static"),
        "autofp8": InputRounding("token"),
    }
    assert {kind: layout_of(kind).inputs for kind in KINDS} == wanted


def test_keys_of_loading_change_nothing_where_inputs_stay() -> None:
    settings = {**compressed_float("channel", None), "dequantize": True, "run_compressed": False}
    assert CompressedFloatLayout.from_settings(settings) == layout_of("weights")
    assert Fp8Layout.from_settings(fine_grained("static", None, dequantize=False)) == layout_of("whole")


def test_weights_of_a_checkpoint(tmp_path: Path) -> None:
    meant, source = write_floats(tmp_path / "c", "deepseek"), Checkpoint(tmp_path / "c")
    assert source.layout is not None and source.layout.scheme == "fp8" and source.packed.keys() == meant.keys()
    assert all(source.tensor(name).double().equal(weight) for name, weight in meant.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**compressed_float("tensor", STATIC), "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        (compressed_float("tensor", {**STATIC, "num_bits": 4}), "input_activations are 'float' of 4 bits"),
        (compressed_float("tensor", {**STATIC, "type": "int"}), "input_activations are 'int' of 8 bits"),
        (compressed_float("tensor", {**STATIC, "symmetric": False}), "with zero points"),
        (compressed_float("tensor", {**STATIC, "dynamic": True}), "strategy 'tensor' with dynamic True"),
        (compressed_float("tensor", {**GROUP, "dynamic": "local"}), "dynamic 'local'"),
        (compressed_float("tensor", {**TOKEN, "dynamic": False}), "strategy 'token' with dynamic False"),
        (compressed_float("tensor", {**GROUP, "group_size": None}), "group_size None"),
        (compressed_float("tensor", {**TOKEN, "zeta": 1}), "input_activations' 'zeta' is not known here"),
        (compressed_float("tensor", {**TOKEN, "scale_dtype": "torch.uint8"}), "scale_dtype 'torch.uint8'"),
        (compressed_float("group", TOKEN), "strategy is 'group'"),
        (compressed_float("block", TOKEN), "block_structure is None"),
        (compressed_float("block", TOKEN, [128]), r"block_structure is \[128\]"),
        (compressed_float("block", TOKEN, [0, 128]), r"block_structure is \[0, 128\]"),
        (fine_grained("static", [128, 128], scale_fmt="ue8m0"), "scale_fmt is 'ue8m0'"),
        (fine_grained("static", [128, 128], expert_dtype="fp4"), "expert_dtype is 'fp4'"),
        (fine_grained("static", [128, 128], zeta=1), "'zeta' is not known here"),
        (fine_grained("dynamic", [128, 128], dequantize=True), "dequantize is true, with which transformers leaves"),
        ({**compressed_float("channel", TOKEN), "dequantize": True}, "dequantize is true"),
        ({**compressed_float("channel", TOKEN), "run_compressed": False}, "run_compressed is false"),
        (fine_grained("static", 128), "weight_block_size is 128"),
        (fine_grained("static", [128, True]), "weight_block_size is"),
        (fine_grained("lively", [128, 128]), "activation_scheme is 'lively'"),
        ({**fine_grained("static"), "fmt": "e5m2"}, "fmt is 'e5m2'"),
        (fine_grained("static", kv_cache_scheme="static"), "kv_cache_scheme"),
    ],
)
def test_settings_that_are_not_read(settings: dict[str, Any], message: str) -> None:
    layout = Fp8Layout if settings["quant_method"] == "fp8" else CompressedFloatLayout
    with pytest.raises(ValueError, match=message):
        layout.from_settings(settings)


def test_outputs_that_are_rounded() -> None:
    settings = compressed_float("tensor", STATIC)
    settings["config_groups"]["group_0"]["output_activations"] = STATIC
    with pytest.raises(ValueError, match="output_activations"):
        CompressedFloatLayout.from_settings(settings)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("token", {"weight_scale": (72, 2)}, r"weight_scale .*\[72, 2\].*channel asks for \[72, 1\] or \[72\]"),
        ("static", {"weight_scale": (72, 1)}, r"strategy tensor asks for"),
        ("blocks", {"weight_scale": (3, 3)}, r"strategy block asks for \[3, 2\]"),
        ("static", {"input_scale": (48,)}, "input_scale has the shape"),
        ("deepseek", {"weight_scale_inv": (3, 3)}, r"blocks of \[48, 16\] ask for \[2, 3\]"),
        ("whole", {"weight_scale_inv": (72, 1)}, "one number is asked for"),
        ("whole", {"activation_scale": (2,)}, "activation_scale has the shape"),
    ],
)
def test_shapes_of_parts(kind: str, change: Any, message: str) -> None:
    parts, _ = stored(kind, WEIGHT)
    shapes = {name: tuple(part.shape) for name, part in parts.items()}
    with pytest.raises(ValueError, match=message):
        layout_of(kind).shape({**shapes, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": WEIGHT.to(torch.float8_e5m2)}, "weight is float8_e5m2, and float8_e4m3fn is read"),
        ({"weight": WEIGHT.to(torch.int8)}, "weight is int8"),
        ({"weight_scale": torch.ones((), dtype=torch.float8_e8m0fnu)}, "weight_scale is float8_e8m0fnu"),
        ({"weight": (WEIGHT * float("nan")).to(torch.float8_e4m3fn)}, "not finite"),
        ({"input_scale": torch.tensor(0.0)}, "input_scale is 0, and must be positive"),
        ({"input_scale": torch.tensor(float("nan"))}, "input_scale is nan"),
    ],
)
def test_parts_that_are_not_read(change: Any, message: str) -> None:
    parts, _ = stored("static", WEIGHT)
    with pytest.raises(ValueError, match=message):
        layout_of("static").read({**parts, **change})


def test_a_missing_scale_is_named(tmp_path: Path) -> None:
    write_floats(tmp_path / "c", "deepseek")
    change_tensors(tmp_path / "c", lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight_scale_inv"))
    with pytest.raises(LucidError, match=r"mlp\.up_proj is quantized by fp8, and has no weight_scale_inv\."):
        Checkpoint(tmp_path / "c")


def test_other_blocks_than_the_settings_say(tmp_path: Path) -> None:
    write_floats(tmp_path / "c", "deepseek")
    change_settings(tmp_path / "c", fine_grained("dynamic", [128, 128]))
    with pytest.raises(LucidError, match=r"does not fit its quantization_config: weight_scale_inv has the shape"):
        Checkpoint(tmp_path / "c")


def test_numbers_without_settings(tmp_path: Path) -> None:
    write_floats(tmp_path / "c", "token")
    change_settings(tmp_path / "c", None)
    with pytest.raises(LucidError, match=r"unexpected: .*weight_scale.*another type .*F8_E4M3"):
        Checkpoint(tmp_path / "c")
