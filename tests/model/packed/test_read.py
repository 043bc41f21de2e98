"""Quantized checkpoints open as the weights they mean; what is missing, wrong or of another tool is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from tests.model.packed.packing import KINDS, SETTINGS, change_settings, change_tensors, stored, write_packed

UP = "model.layers.0.mlp.up_proj"


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
