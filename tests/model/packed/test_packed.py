"""Quantized checkpoints open as the weights they mean, or are refused by one line that names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.packed.read import KEY, find_parts, split_layout
from lucid_deploy.model.packed.settings import compressed_layout, fp8_layout, gptq_layout
from lucid_deploy.model.packed.weight import InputRounding, PackedWeight
from tests.model.packed import floats, packing
from tests.model.packed.floats import GROUP, STATIC, TOKEN, compressed_float, fine_grained
from tests.model.packed.packing import SETTINGS, change_settings, change_tensors, write_packed

UP = "model.layers.0.mlp.up_proj"
WEIGHT = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))
SCHEMES: dict[str, dict[str, Any]] = SETTINGS | {name: kind[0] for name, kind in floats.KINDS.items()}
TYPES = {
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
NAME_OF = {dtype: name for name, dtype in TYPES.items()}
INT4 = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 16}


def stored(kind: str, weight: torch.Tensor = WEIGHT) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    return (floats if kind in floats.KINDS else packing).stored(kind, weight)


def opened(settings: Any, parts: dict[str, torch.Tensor], where: Path) -> torch.Tensor:
    """Read one weight as a checkpoint does, without its files."""
    _, layout = split_layout({KEY: settings}, where)
    assert layout is not None
    named = {f"up.{name}": part for name, part in parts.items()}
    weights = find_parts(
        layout, named, lambda name: tuple(named[name].shape), where, lambda name: NAME_OF[named[name].dtype]
    )
    if set(weights["up.weight"].names) != set(parts):
        raise LucidError("unexpected parts")  # so a checkpoint refuses tensors that are not the model's
    return weights["up.weight"].read(named.__getitem__, where).dequantize()


@pytest.mark.parametrize("kind", ["gptq", "awq", "packed", "packed8", "deepseek", "static"])
def test_checkpoints_are_what_the_formula_gives(kind: str, tmp_path: Path) -> None:
    meant = (floats.write_floats if kind in floats.KINDS else write_packed)(tmp_path / "c", kind)
    checkpoint = Checkpoint(tmp_path / "c")
    assert checkpoint.packed.keys() == meant.keys() and len(meant) == 7
    for name, weight in meant.items():
        assert checkpoint.tensor(name).double().equal(weight)
        assert checkpoint.packed_weight(name).codes.shape == weight.shape
    assert checkpoint.packed_weight("lm_head.weight") is None
    logits, _ = load_model(checkpoint)(torch.arange(5)[None])
    assert logits.isfinite().all()


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("rows", [24, 72])
def test_every_layout_is_what_the_formula_gives(kind: str, rows: int, tmp_path: Path) -> None:
    """72 rows are no multiple of the blocks' 32 and 48, and 48 inputs none of 32."""
    parts, meant = stored(kind, torch.randn(rows, 48, generator=torch.Generator().manual_seed(1)))
    assert opened(SCHEMES[kind], parts, tmp_path).double().equal(meant)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("bits", [4, 8])
def test_dequantizing_rounds_nothing(bits: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 1 << bits, (3, 40), generator=generator, dtype=torch.uint8)
    zeros = torch.randint(0, 1 << bits, (3, 3), generator=generator, dtype=torch.uint8)
    scales = torch.randn(3, 3, generator=generator).to(dtype)
    spread = torch.arange(40) // 16
    wanted = (codes.double() - zeros.double()[:, spread]) * scales.double()[:, spread]
    assert PackedWeight(codes, zeros, scales, bits, 16).dequantize().double().equal(wanted)


@pytest.mark.parametrize("block", [(128, 128), (96, 48)])
def test_fp8_blocks_as_in_transformers(block: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(2 * block[0], 3 * block[1], generator=draw).to(torch.float8_e4m3fn)
    parts = {"weight": weight, "weight_scale_inv": torch.rand(2, 3, generator=draw) + 0.01}
    wanted = Fp8Dequantize(SimpleNamespace()).convert(dict(parts))["weight"]
    assert fp8_layout(fine_grained("dynamic", list(block))).read(parts).dequantize().float().equal(wanted)


def test_how_inputs_are_rounded(tmp_path: Path) -> None:
    wanted = {
        "gptq": None,
        "weights": None,
        "static": InputRounding("static"),
        "token": InputRounding("token"),
        "blocks": InputRounding("group", 16),
        "deepseek": InputRounding("group", 16),
        "whole": InputRounding("static"),
        "autofp8": InputRounding("token"),
    }
    for kind, inputs in wanted.items():
        _, layout = split_layout({KEY: SCHEMES[kind]}, tmp_path)
        assert layout is not None and layout.inputs == inputs


def grouped(**weights: Any) -> dict[str, Any]:
    return {**SETTINGS["packed"], "config_groups": {"a": {"weights": {**INT4, **weights}}}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quantized by bitsandbytes, which is not supported"),
        ({"bits": 4}, "a tool that its configuration does not name"),
        ("gptq", "a tool that its configuration does not name"),
        ({**SETTINGS["gptq"], "bits": 3}, "by gptq in an unsupported way: .*bits: unsupported value 3"),
        ({**SETTINGS["gptq"], "group_size": 0}, "group_size is 0"),
        ({**SETTINGS["gptq"], "checkpoint_format": "marlin"}, "checkpoint_format: unsupported value 'marlin'"),
        ({**SETTINGS["gptq"], "format": "gptq_v2", "checkpoint_format": "gptq"}, "format gptq_v2 and checkpoint_"),
        ({**SETTINGS["gptq"], "is_marlin_format": True}, "is_marlin_format"),
        ({**SETTINGS["gptq"], "dynamic": {"-:.*": {}}}, "dynamic"),
        ({**SETTINGS["gptq"], "rotation": "hadamard"}, "unknown key 'rotation'"),
        ({**SETTINGS["gptq"], "method": "awq"}, "method: unsupported value"),
        ({**SETTINGS["gptq"], "group_size": 32}, "does not fit its quantization_config: scales has the shape"),
        ({**SETTINGS["awq"], "version": "gemv"}, "version 'gemv' is not supported"),
        ({**SETTINGS["awq"], "backend": "llm-awq"}, "llm-awq"),
        ({**SETTINGS["awq"], "zero_point": False}, "zero_point is false"),
        ({**SETTINGS["awq"], "q_group_size": 128}, "unknown key 'q_group_size'"),
        ({**SETTINGS["awq"], "bits": None}, "bits"),
        ({**SETTINGS["packed"], "format": "int-quantized"}, "format: unsupported value"),
        ({**SETTINGS["packed"], "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({**SETTINGS["packed"], "transform_config": {"config_groups": {"R1": {}}}}, "transform_config"),
        ({**SETTINGS["packed"], "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ({**SETTINGS["packed"], "config_groups": {}}, "0 config_groups"),
        ({**SETTINGS["packed"], "config_groups": {"a": {"weights": INT4, "input_activations": TOKEN}}}, "W4A16"),
        ({**SETTINGS["packed"], "config_groups": {"a": {"weights": INT4, "output_activations": TOKEN}}}, "output_act"),
        ({**SETTINGS["packed"], "config_groups": {"a": {"weights": INT4, "format": "float-quantized"}}}, "contradict"),
        (grouped(type="float"), "packed weights of type float"),
        (grouped(num_bits=3), "num_bits: unsupported value 3"),
        (grouped(strategy="block"), "the strategy 'block'"),
        (grouped(dynamic=True), "dynamic is true"),
        (grouped(actorder="best"), "actorder: unsupported value"),
        (SETTINGS["packed"], "has a quantization_config of compressed-tensors, but no quantized tensors"),
        (compressed_float("tensor", {**STATIC, "num_bits": 4}), "input_activations of type float with 4 bits"),
        (compressed_float("tensor", {**STATIC, "symmetric": False}), "zero points"),
        (compressed_float("tensor", {**STATIC, "dynamic": True}), "strategy 'tensor', dynamic True"),
        (compressed_float("tensor", {**TOKEN, "dynamic": False}), "strategy 'token', dynamic False"),
        (compressed_float("tensor", {**GROUP, "group_size": None}), "group_size None"),
        (compressed_float("tensor", {**TOKEN, "scale_dtype": "torch.uint8"}), "scale_dtype: unsupported value"),
        (compressed_float("block", TOKEN), "the strategy 'block' with block_structure None"),
        (compressed_float("block", TOKEN, [0, 128]), "block_structure"),
        ({**compressed_float("channel", TOKEN), "run_compressed": False}, "run_compressed is false"),
        (fine_grained("dynamic", [128, 128], dequantize=True), "dequantize is true: transformers then does not"),
        (fine_grained("static", [128, 128], scale_fmt="ue8m0"), "scale_fmt: unsupported value"),
        (fine_grained("static", 128), "weight_block_size: expected `array"),
        (fine_grained("lively", [128, 128]), "activation_scheme: unsupported value"),
        (fine_grained("static", kv_cache_scheme="static"), "kv_cache_scheme"),
        (None, "do not fit its config.json.*qweight"),
    ],
)
def test_settings_that_are_refused(settings: Any, message: str, tmp_path: Path, gptq_checkpoint: Path) -> None:
    change_settings(gptq_checkpoint, settings)
    with pytest.raises(LucidError, match=message) as caught:
        Checkpoint(gptq_checkpoint)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def gptq_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "c"
    write_packed(path, "gptq")
    return path


VALUES = [None, True, 4.0, "4", "x", [], ["gptq"], [{}], {}, {"a": 1}, -1, 0, 3, 2**40]


def changes(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Change every value, at every depth, to every other."""
    for key, value in settings.items():
        yield from ({**settings, key: other} for other in VALUES)
        if isinstance(value, dict):
            yield from ({**settings, key: inner} for inner in changes(value))


@pytest.mark.parametrize("kind", SCHEMES)
def test_changed_settings_give_the_same_weight_or_an_error(kind: str, tmp_path: Path) -> None:
    more = {"sym": True, "checkpoint_format": "gptq"} if kind == "gptq" else {}
    parts, meant = stored(kind)
    for settings in changes({**SCHEMES[kind], **more}):
        try:
            weight = opened(settings, parts, tmp_path)
        except LucidError as error:
            assert "\n" not in str(error)
        else:
            absent = kind == "gptq_v2" and settings["checkpoint_format"] is None  # which is the first format
            assert weight.double().equal(meant) != absent, settings


@pytest.mark.parametrize("kind", SCHEMES)
def test_changed_parts_give_the_same_weight_or_an_error(kind: str, tmp_path: Path) -> None:
    """Read as another type, a part would mean other numbers: int32 wraps in uint8, and half a scale is 0."""
    parts, meant = stored(kind)
    for part, value in parts.items():
        numbers = not value.is_floating_point() or value.dtype == torch.float8_e4m3fn
        other = [value.flatten(), value[:0] if value.ndim else value[None][:0], value[None]]
        for changed in [*other, *(value.to(dtype) for dtype in TYPES.values() if numbers or dtype.itemsize < 2)]:
            if changed.dtype == value.dtype and changed.shape == value.shape:
                continue
            try:
                weight = opened(SCHEMES[kind], {**parts, part: changed}, tmp_path)
            except LucidError as error:
                assert part in str(error) and "\n" not in str(error)
            else:
                assert weight.double().equal(meant), (part, changed.dtype)


def test_reordered_inputs_are_refused() -> None:
    """With desc_act, or actorder group, only the index says which inputs share a scale."""
    parts, meant = stored("gptq")
    layout = gptq_layout({**SETTINGS["gptq"], "desc_act": True})
    assert "g_idx" in layout.required and layout.read(parts).dequantize().double().equal(meant)
    with pytest.raises(ValueError, match=r"reordered inputs .*static_groups=True"):
        layout.read({**parts, "g_idx": parts["g_idx"].flip(0)})
    for change in ({"static_groups": True}, {"group_size": -1}, {"desc_act": False}):
        changed = gptq_layout({**SETTINGS["gptq"], "desc_act": True, **change})
        assert "g_idx" not in changed.required
    assert "weight_g_idx" in compressed_layout(grouped(actorder="group")).required
    assert "weight_g_idx" in compressed_layout(grouped(actorder=True)).required
    assert "weight_g_idx" not in compressed_layout(grouped(actorder="static")).required
    parts, _ = stored("packed")
    with pytest.raises(ValueError, match=r"reordered inputs .*static"):
        compressed_layout(SETTINGS["packed"]).read({**parts, "weight_g_idx": torch.arange(48) % 3})


@pytest.mark.parametrize(("kind", "zero"), [("gptq", 9), ("gptq8", 129), ("gptq_v2", 7)])
def test_zero_points_of_the_other_gptq_format(kind: str, zero: int) -> None:
    """A symmetric file shows by its zero points which format it is in: read as the other, every weight is one off."""
    parts, _ = stored({"gptq_v2": "gptq"}.get(kind, kind))
    if kind != "gptq_v2":
        parts["qzeros"] = parts["qzeros"] + (0x01010101 if kind == "gptq8" else 0x11111111)
    with pytest.raises(ValueError, match=rf"sym is true.* the stored zero point is {zero}"):
        gptq_layout({**SETTINGS[kind], "sym": True}).read(parts)


def test_ambiguous_zero_points_of_gptq() -> None:
    parts, _ = stored("gptq")
    with pytest.raises(ValueError, match=r"stored as 15 .*gptq_v2"):
        gptq_layout(SETTINGS["gptq"]).read({**parts, "qzeros": torch.full_like(parts["qzeros"], -1)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": (WEIGHT * float("nan")).to(torch.float8_e4m3fn)}, "contains NaN"),
        ({"input_scale": torch.tensor(0.0)}, "input_scale is 0, and must be positive"),
        ({"input_scale": torch.tensor(float("nan"))}, "input_scale is nan"),
    ],
)
def test_values_of_e4m3_that_are_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compressed_layout(SCHEMES["static"]).read({**stored("static")[0], **change})


def test_missing_and_doubled_parts_are_named(tmp_path: Path) -> None:
    write_packed(tmp_path / "c", "awq")
    change_tensors(tmp_path / "c", lambda tensors: tensors.update({f"{UP}.weight": torch.zeros(112, 64)}))
    with pytest.raises(LucidError, match=rf"has both {UP}\.weight and its quantized form, {UP}\..*Remove one of them"):
        Checkpoint(tmp_path / "c")
    change_tensors(tmp_path / "c", lambda tensors: [tensors.pop(f"{UP}.{part}") for part in ("weight", "scales")])
    with pytest.raises(LucidError, match=rf"{UP} is quantized by awq, and has no scales"):
        Checkpoint(tmp_path / "c")
    change_tensors(tmp_path / "c", lambda tensors: [tensors.pop(f"{UP}.{part}") for part in ("qweight", "qzeros")])
    with pytest.raises(LucidError, match=rf"missing: {UP}\.weight"):
        Checkpoint(tmp_path / "c")


@pytest.mark.parametrize("embedding", [True, False], ids=["both stored", "head alone"])
def test_a_tied_head_that_is_quantized_is_refused_by_name(embedding: bool, tmp_path: Path) -> None:
    write_packed(tmp_path / "c", "gptq")

    def pack_head(tensors: dict[str, torch.Tensor]) -> None:
        parts, _ = stored("gptq", torch.randn(104, 64, generator=torch.Generator().manual_seed(0)))
        tensors |= {f"lm_head.{part}": value for part, value in parts.items()}
        del tensors["lm_head.weight"]
        if not embedding:
            del tensors["model.embed_tokens.weight"]

    change_tensors(tmp_path / "c", pack_head)
    path = tmp_path / "c" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tie_word_embeddings": True}))
    with pytest.raises(LucidError, match=r"lm_head\.weight is quantized by gptq, and tie_word_embeddings is true"):
        Checkpoint(tmp_path / "c")
