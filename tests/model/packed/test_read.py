"""Quantized checkpoints open as the weights they mean; what is missing, wrong or of another tool is named."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.model.packed.read import KEY, find_parts, split_layout
from tests.model.packed import floats
from tests.model.packed.packing import KINDS, SETTINGS, change_settings, change_tensors, stored, write_packed

UP, NOT_CONVERTED = "model.layers.0.mlp.up_proj", "modules_to_not_convert"


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_the_formula_gives(kind: str, tmp_path: Path) -> None:
    meant = write_packed(tmp_path / "c", kind, attention_bias=True)
    checkpoint = Checkpoint(tmp_path / "c")
    assert checkpoint.layout is not None and len(checkpoint.packed) == len(meant) == 7
    for name, weight in meant.items():
        assert checkpoint.tensor(name).double().equal(weight)
        assert checkpoint.packed_weight(name).codes.shape == weight.shape
    assert checkpoint.packed_weight("lm_head.weight") is None
    logits, _ = load_model(checkpoint)(torch.arange(5)[None])
    assert logits.isfinite().all()


def test_settings_in_a_file_of_their_own(tmp_path: Path) -> None:
    meant = write_packed(tmp_path / "c", "gptq")
    change_settings(tmp_path / "c", None)
    (tmp_path / "c" / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 16, "sym": True}))
    name = f"{UP}.weight"
    assert Checkpoint(tmp_path / "c").tensor(name).double().equal(meant[name])
    (tmp_path / "c" / "quantize_config.json").write_text("{")
    with pytest.raises(LucidError, match=r"quantize_config\.json cannot be read"):
        Checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "quantized by bitsandbytes, whose numbers are not read",
        ),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quantized by modelopt, whose numbers are not read"),
        (
            {**SETTINGS["packed"], "format": "nvfp4-pack-quantized"},
            "quantized by compressed-tensors, and cannot be read: its format is 'nvfp4-pack-quantized'",
        ),
        ({"quant_method": "fbgemm_fp8"}, "quantized by fbgemm_fp8, whose numbers are not read"),
        ({"quant_method": "fp8"}, "says that fp8 has quantized it, and no tensor is"),
        ({"bits": 4}, "a tool that its configuration does not name"),
        ("gptq", "a tool that its configuration does not name"),
        ({**SETTINGS["gptq"], "bits": 2}, "quantized by gptq, and cannot be read: its bits are 2"),
        (
            {**SETTINGS["packed"], "config_groups": {"a": 3}},
            r"cannot be read: its config_groups are {'a': 3}; an object",
        ),
        (
            {**SETTINGS["packed"], "config_groups": {"a": None}},
            r"its config_groups are {'a': None}; an object with one",
        ),
        ({**SETTINGS["packed"], "config_groups": [1]}, r"its config_groups are \[1\]; an object with one group"),
        ({**SETTINGS["packed"], "config_groups": {"a": {"weights": 3}}}, "its config_groups' weights are 3; an object"),
        ({**SETTINGS["gptq"], "group_size": 32}, r"does not fit its quantization_config: scales has the shape"),
        (SETTINGS["packed"], "says that compressed-tensors has quantized it, and no tensor is"),
        (None, "do not fit its config.json.*qweight"),
    ],
)
def test_settings_that_are_refused(settings: Any, message: str, tmp_path: Path) -> None:
    write_packed(tmp_path / "c", "gptq")
    change_settings(tmp_path / "c", settings)
    with pytest.raises(LucidError, match=message) as caught:
        Checkpoint(tmp_path / "c")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [('{"quantization": {"quant_algo": "NVFP4"}}', "NVFP4"), ("{", "not said"), ("[]", "not said")],
)
def test_modelopts_file_is_refused_by_name(content: str, said: str, tmp_path: Path) -> None:
    """Its checkpoints may say nothing in config.json; their bytes would be taken for weights of other shapes."""
    write_packed(tmp_path / "c", "gptq")
    change_settings(tmp_path / "c", None)
    (tmp_path / "c" / "hf_quant_config.json").write_text(content)
    with pytest.raises(LucidError, match=rf"quantized by modelopt \(.*{said}, hf_quant_config\.json\), whose numbers"):
        Checkpoint(tmp_path / "c")


def test_modelopts_file_beside_other_settings(tmp_path: Path) -> None:
    """TensorRT's programs read that file, which may say that caches are rounded too."""
    write_packed(tmp_path / "c", "gptq")
    (tmp_path / "c" / "hf_quant_config.json").write_text('{"quantization": {"kv_cache_quant_algo": "FP8"}}')
    with pytest.raises(LucidError, match=r"by gptq, as config\.json says, and by modelopt \(how is not said\), as hf_"):
        Checkpoint(tmp_path / "c")


def test_settings_in_both_places(tmp_path: Path) -> None:
    """transformers reads config.json and gptqmodel the other file: they may say less or more, and nothing else."""
    meant, path, name = write_packed(tmp_path / "c", "gptq"), tmp_path / "c" / "quantize_config.json", f"{UP}.weight"
    for said in ({}, {"sym": True, "checkpoint_format": "gptq", "true_sequential": True}):
        path.write_text(json.dumps({"bits": 4, "group_size": 16, **said}))
        assert Checkpoint(tmp_path / "c").tensor(name).double().equal(meant[name])
    for said in ({"checkpoint_format": "gptq_v2"}, {"sym": False}, {"group_size": 32}, {"bits": 8}):
        path.write_text(json.dumps({"bits": 4, "group_size": 16, **said}))
        with pytest.raises(LucidError, match=r"in config\.json and another one in quantize_config\.json\."):
            Checkpoint(tmp_path / "c")
    path.write_text(json.dumps({"bits": 4, "group_size": 16, "rotation": "hadamard"}))
    with pytest.raises(LucidError, match=r"quantize_config\.json cannot be taken: .*'rotation' is not known"):
        Checkpoint(tmp_path / "c")


@pytest.mark.parametrize("kind", ["gptq", "awq", "packed"])
def test_a_weight_beside_its_numbers(kind: str, tmp_path: Path) -> None:
    """Programs differ in which of them they read; a tensor of another shape would have gone unseen too."""
    write_packed(tmp_path / "c", kind)
    change_tensors(tmp_path / "c", lambda tensors: tensors.update({f"{UP}.weight": torch.zeros(112, 64)}))
    with pytest.raises(LucidError, match=rf"has {UP}\.weight and {UP}\..*Remove one of them"):
        Checkpoint(tmp_path / "c")


@pytest.mark.parametrize(
    ("kind", "key"), [("packed", "ignore"), ("token", "ignore"), ("autofp8", "ignored_layers"), ("awq", NOT_CONVERTED)]
)
def test_a_module_that_is_listed_as_not_quantized(kind: str, key: str, tmp_path: Path) -> None:
    """transformers reads such numbers of E4M3 without their scale. Lists of others, and patterns, change nothing."""
    (floats.write_floats if kind in floats.KINDS else write_packed)(tmp_path / "c", kind)
    for names in (["lm_head", "re:.*lm_head", "mlp"], None):
        change_settings(tmp_path / "c", {**SCHEMES[kind], key: names})
        assert len(Checkpoint(tmp_path / "c").packed) == 7
    change_settings(tmp_path / "c", {**SCHEMES[kind], key: ["lm_head", UP]})
    with pytest.raises(LucidError, match=rf"lists {UP} as not quantized .*{key}.*, and {UP}\..* are stored"):
        Checkpoint(tmp_path / "c")


def test_missing_parts_are_named(tmp_path: Path) -> None:
    write_packed(tmp_path / "c", "awq")
    change_tensors(tmp_path / "c", lambda tensors: tensors.pop(f"{UP}.scales"))
    with pytest.raises(LucidError, match=rf"{UP} is quantized by awq, and has no scales"):
        Checkpoint(tmp_path / "c")
    change_tensors(tmp_path / "c", lambda tensors: [tensors.pop(f"{UP}.{part}") for part in ("qweight", "qzeros")])
    with pytest.raises(LucidError, match=rf"missing: {UP}\.weight"):
        Checkpoint(tmp_path / "c")


def test_an_order_of_inputs_is_refused_with_its_weight(tmp_path: Path) -> None:
    write_packed(tmp_path / "c", "gptq")

    def turn(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{UP}.g_idx"] = tensors[f"{UP}.g_idx"].flip(0).contiguous()

    change_tensors(tmp_path / "c", turn)
    checkpoint = Checkpoint(tmp_path / "c")
    with pytest.raises(LucidError, match=rf"{UP} cannot be taken over: its inputs are in groups in another order"):
        checkpoint.tensor(f"{UP}.weight")


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


WEIGHT = torch.randn(24, 48, generator=torch.Generator().manual_seed(0))
SCHEMES: dict[str, dict[str, Any]] = SETTINGS | {name: kind[0] for name, kind in floats.KINDS.items()}
SPELLED = {
    "I8": torch.int8,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "BOOL": torch.bool,
}
NAME_OF = {dtype: name for name, dtype in SPELLED.items()}
FLOATS, WHOLE = {"F16", "BF16", "F32"}, {"I32", "I64"}  # of scales, and of shapes and orders of inputs
WRITTEN = {  # what the tools write
    "qweight": {"I32"},
    "qzeros": {"I32"},
    "weight_packed": {"I32"},
    "weight_zero_point": {"I32"},
    "g_idx": WHOLE,
    "weight_shape": WHOLE,
}


def opened(settings: Any, parts: dict[str, torch.Tensor], where: Path) -> torch.Tensor:
    """Read one weight as a checkpoint does, without its files."""
    _, layout = split_layout({KEY: settings}, where)
    assert layout is not None
    named = {f"up.{name}": part for name, part in parts.items()}
    found = find_parts(
        layout, named, lambda name: tuple(named[name].shape), where, lambda name: NAME_OF[named[name].dtype]
    )
    if set(found["up.weight"].names) != set(parts):
        raise LucidError("unexpected parts")  # so a checkpoint says where a tensor is none of the model's
    return found["up.weight"].read(named.__getitem__, where).dequantize()


def written(kind: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    return floats.stored(kind, WEIGHT) if kind in floats.KINDS else stored(kind, WEIGHT)


@pytest.mark.parametrize("kind", SCHEMES)
def test_every_type_of_every_part(kind: str, tmp_path: Path) -> None:
    """Read as another type, a part would mean other numbers: int32 wraps in uint8, and half a scale is 0."""
    parts, _ = written(kind)
    for part, value in parts.items():
        known = WRITTEN.get(part, {"I8" if kind == "integers" else "F8_E4M3"} if part == "weight" else FLOATS)
        assert NAME_OF[value.dtype] in known
        for name, dtype in SPELLED.items():
            changed = {**parts, part: value.to(dtype)}
            if name in known:
                assert opened(SCHEMES[kind], changed, tmp_path).isfinite().all()
                continue
            said = rf"up does not fit .*: its {part} is {name}, and .* read\. "
            if (part, name) == ("weight_zero_point", "I8"):  # read where each output has its own
                said = "its weight_zero_point has 3 rows for 24 outputs"
            with pytest.raises(LucidError, match=said) as caught:
                opened(SCHEMES[kind], changed, tmp_path)
            assert said.startswith("its") or all(name in str(caught.value) for name in known)


@pytest.mark.parametrize("kind", SCHEMES)
def test_every_part_without_axes_without_numbers_and_flat(kind: str, tmp_path: Path) -> None:
    parts, meant = written(kind)
    for part, value in parts.items():
        for changed in (value.flatten(), value.flatten()[0], value[:0] if value.ndim else value[None][:0], value[None]):
            try:
                found = opened(SCHEMES[kind], {**parts, part: changed}, tmp_path)
            except LucidError as error:
                assert part in str(error) and "\n" not in str(error)
            else:
                assert found.double().equal(meant)


VALUES = [None, True, False, 4.0, 8.0, "4", "x", [], ["gptq"], [{}], {}, {"a": 1}, -1, 0, 3, 2**40, 0.5, float("nan")]


def changes(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Change every value, at every depth, to every other."""
    for key, value in settings.items():
        yield from ({**settings, key: other} for other in VALUES)
        if isinstance(value, dict):
            yield from ({**settings, key: inner} for inner in changes(value))


@pytest.mark.parametrize("kind", SCHEMES)
def test_every_setting_of_every_type(kind: str, tmp_path: Path) -> None:
    """What is computed is what the formula gives, and everything else is refused in a line: never a traceback."""
    more = {"sparsity_config": {"format": "dense"}, "transform_config": {}} if "config_groups" in SCHEMES[kind] else {}
    more |= {"sym": True, "checkpoint_format": "gptq"} if kind == "gptq" else {}
    parts, meant = written(kind)
    for settings in changes({**SCHEMES[kind], **more}):
        try:
            found = opened(settings, parts, tmp_path)
        except LucidError as error:
            assert "\n" not in str(error) and not re.search("unhashable|attribute|unpack|not supported", str(error))
        else:
            absent = kind == "gptq_v2" and settings["checkpoint_format"] is None  # which is the first format
            assert found.double().equal(meant) != absent, settings


def test_groups_above_a_row_are_all_of_it(tmp_path: Path) -> None:
    """AutoGPTQ writes one group for a row of 48 inputs where its settings say 128; 2^40 would not fit in memory."""
    for kind in ("gptq8", "whole"):
        parts, meant = written(kind)
        for size in (48, 128, 2**40):
            key, value = ("group_size", size) if kind == "gptq8" else ("weight_block_size", [size * 2, size])
            changed = {**parts, "weight_scale_inv": parts["weight_scale_inv"][None, None]} if kind == "whole" else parts
            assert opened({**SCHEMES[kind], key: value}, changed, tmp_path).double().equal(meant)


def test_zero_points_outside_the_range_of_their_bits(tmp_path: Path) -> None:
    parts, meant = stored("packed", WEIGHT)
    layout_zeros = torch.zeros(24, 3, dtype=torch.int8)
    assert opened(SCHEMES["packed"], {**parts, "weight_zero_point": layout_zeros - 8}, tmp_path).shape == meant.shape
    for zero in (8, -9):
        with pytest.raises(
            LucidError, match="up cannot be taken over: its weight_zero_point has numbers outside -8 to 7"
        ):
            opened(SCHEMES["packed"], {**parts, "weight_zero_point": layout_zeros + zero}, tmp_path)
