"""Configurations of Qwen3-Next and Qwen3.5 as transformers reads them, and where the parts of their tensors lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, Qwen3_5TextConfig

from lucid_deploy.model.checkpoint import Checkpoint, expected_shapes
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.families import family_named
from tests.model.config_samples import refusal
from tests.model.families.both_models import FULL, SIZES, THREE, difference
from tests.model.family_shapes import HYBRID, random_model

LINEAR = "linear_attention"
PLAIN = {**SIZES, "model_type": "qwen3_next", "num_experts": 0}
QWEN3_5 = {**SIZES, "model_type": "qwen3_5_text"}


def stored_rows(ours: LucidConfig, theirs: Any) -> None:
    """Check that what our parameters read covers every row of every stored tensor once."""
    with torch.device("meta"):
        stored = {name: tuple(x.shape) for name, x in AutoModelForCausalLM.from_config(theirs).state_dict().items()}
    rows: dict[str, list[int]] = {}
    for name, shape in expected_shapes(ours).items():
        place = family_named(ours.family).stored(name, ours)
        whole = stored[place.name]
        start, end = place.rows or (0, whole[0])
        part = whole[0] // place.groups
        assert ((end - start) * place.groups, *whole[1:]) == shape
        assert place.plus == (1 if "norm." in name and "linear_attn" not in name else 0)
        rows.setdefault(place.name, []).extend(
            group * part + row for group in range(place.groups) for row in range(start, end)
        )
    assert {name: sorted(found) for name, found in rows.items()} == {
        name: list(range(shape[0])) for name, shape in stored.items()
    }


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"full_attention_interval": 3, "partial_rotary_factor": 0.5, "head_dim": 32},
        {"layer_types": [LINEAR, FULL] * 3, "rope_parameters": {"rope_theta": 5e3, "partial_rotary_factor": 0.125}},
        {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_conv_kernel_dim": 3, "attention_bias": True},
        {"num_experts": 8, "decoder_sparse_step": 7},
        {"num_experts": 8, "mlp_only_layers": list(range(6))},
    ],
    ids=str,
)
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    ours = parse_config({**PLAIN, **given}, "config.json")
    theirs = CONFIG_MAPPING["qwen3_next"](**{**SIZES, "num_experts": 0, **given})
    written = parse_config({**theirs.to_dict(), "dtype": None}, "config.json")
    assert written == ours
    assert ours.kinds == tuple("gated_delta" if kind == LINEAR else "standard" for kind in theirs.layer_types)
    rope = theirs.rope_parameters
    assert ours.rotated == int(theirs.head_dim * rope["partial_rotary_factor"])
    assert (ours.rope_theta, ours.head_dim, ours.qk_norm) == (rope["rope_theta"], theirs.head_dim, "before_rope")
    assert ours.layer_settings["gated_delta"]["kernel"] == theirs.linear_conv_kernel_dim
    assert [ours.rope(index) is not None for index in range(6)] == [kind == FULL for kind in theirs.layer_types]


def test_a_part_that_is_null_is_refused_as_the_class_does_not_take_it_for_missing() -> None:
    null = {"partial_rotary_factor": None}
    theirs = CONFIG_MAPPING["qwen3_next"](**SIZES, num_experts=0, **null)
    assert "partial_rotary_factor" not in theirs.rope_parameters  # so that its class rotates all
    assert "partial_rotary_factor is null, for which transformers rotates the whole" in refusal(PLAIN, **null)
    assert "partial_rotary_factor is null" in refusal(PLAIN, rope_parameters=null)
    said = {"rope_parameters": {"partial_rotary_factor": 0.5}}
    assert parse_config({**PLAIN, **null, **said}, "config.json") == parse_config({**PLAIN, **said}, "config.json")


def test_a_part_below_one_element_rotates_nothing_as_in_transformers(tmp_path: Path) -> None:
    raw = {**THREE, "model_type": "qwen3_next", "num_experts": 0, "head_dim": 2, "layer_types": [FULL, LINEAR, FULL]}
    raw |= {"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 6}
    assert difference({**raw, "linear_value_head_dim": 4}, tmp_path) < 1e-5


@pytest.mark.parametrize(
    ("given", "kinds"),
    [
        (
            {"sliding_window": 5, "layer_types": [LINEAR, "sliding_attention", FULL]},
            ("gated_delta", "window", "lucid"),
        ),
        ({"layer_kinds": ["gated_delta", "standard", "lucid"]}, ("gated_delta", "standard", "lucid")),
    ],
)
def test_attention_rotates_in_layers_of_every_kind_that_attends(given: dict[str, Any], kinds: tuple[str, ...]) -> None:
    """The family's class has no windows; beside LUCID a configuration may say that layers have them."""
    ours = parse_config({**PLAIN, "num_hidden_layers": 3, "attention_type": "lucid", **given}, "config.json")
    assert ours.kinds == kinds
    assert [ours.rope(index) is not None for index in range(3)] == [False, True, True]


def test_the_parts_of_fused_tensors_cover_each_row_once() -> None:
    sizes = {"num_attention_heads": 4, "linear_num_value_heads": 6, "linear_num_key_heads": 3, "attention_bias": True}
    stored_rows(
        parse_config({**PLAIN, **sizes}, "config.json"),
        CONFIG_MAPPING["qwen3_next"](**{**SIZES, "num_experts": 0, **sizes}),
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_experts": 8}, "each token would choose 10 experts, and there are 8"),
        ({"model_type": "qwen3_5_moe_text"}, "num_experts is 0, and this family has experts in every layer"),
        ({"linear_num_value_heads": 5, "linear_num_key_heads": 2}, "linear_num_value_heads (5) is not a multiple of"),
        ({"linear_conv_kernel_dim": 1}, "linear_conv_kernel_dim is 1; short convolutions over 2 to 64 tokens"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor is 1.5; a head is rotated once at most"),
        ({"partial_rotary_factor": 0.5, "head_dim": 6}, "partial_rotary_factor (0.5) of head_dim (6) is 3; rotary"),
        (
            {"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.25}},
            "partial_rotary_factor is 0.5, and 0.25 in rope_parameters",
        ),
        ({"layer_types": [LINEAR, "sliding_attention"] * 3}, "sliding_attention, which Qwen's code does not have"),
        (
            {"layer_types": [FULL, "sliding_attention"] * 3, "sliding_window": 5, "use_sliding_window": False},
            "sliding_attention, which Qwen's code does not have in this family",
        ),
        (
            {"layer_types": [LINEAR, "sliding_attention"] * 3, "attention_type": "lucid"},
            "names sliding_attention, and sliding_window does not",
        ),
        ({"layer_types": ["chunked"] * 6}, "supported are full_attention and sliding_attention and linear_attention"),
        (
            {"hidden_act": "gelu_pytorch_tanh"},
            "hidden_act 'gelu_pytorch_tanh' is not supported in this family; only silu is",
        ),
        ({"linear_num_heads": 3}, "linear_num_heads is 3"),
        ({"layer_settings": {"gated_delta": {"key_heads": 1}}}, "layer_settings has gated_delta, which this family's"),
        ({"attention_type": "lucid", "lucid_layers": [0]}, "names layer 0, which is one of linear attention"),
        ({"attention_type": "lucid", "layer_types": [LINEAR] * 6}, "no layer attends to all tokens, so that none is"),
    ],
)
def test_what_it_does_not_compute_is_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal(PLAIN, **given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"layer_types": [LINEAR, FULL] * 3, "num_key_value_heads": 8, "tie_word_embeddings": True},
        {"rope_parameters": {"rope_theta": 5e3, "mrope_section": [11, 11, 10], "mrope_interleaved": True}},
    ],
    ids=str,
)
def test_settings_of_qwen3_5_are_transformers(given: dict[str, Any]) -> None:
    ours = parse_config({**QWEN3_5, **given}, "config.json")
    theirs = CONFIG_MAPPING["qwen3_5_text"](**SIZES, **given)
    assert parse_config(theirs.to_dict(), "config.json") == ours
    assert ours.kinds == tuple("gated_delta" if kind == LINEAR else "standard" for kind in theirs.layer_types)
    assert (ours.rotated, ours.num_key_value_heads) == (64, theirs.num_key_value_heads)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


def test_the_parts_of_qwen3_5s_tensors_cover_each_row_once() -> None:
    sizes = {"num_attention_heads": 4, "linear_num_value_heads": 6, "linear_num_key_heads": 3}
    stored_rows(parse_config({**QWEN3_5, **sizes}, "config.json"), CONFIG_MAPPING["qwen3_5_text"](**{**SIZES, **sizes}))


def test_heads_for_further_tokens_are_passed_over_as_in_its_code(tmp_path: Path) -> None:
    random_model(Qwen3_5TextConfig(**HYBRID)).float().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    more = {
        "mtp.fc.weight": tensors["lm_head.weight"].clone(),
        "model.visual.blocks.0.weight": tensors["lm_head.weight"].clone(),
    }
    save_file({**tensors, **more}, tmp_path / "model.safetensors")
    assert Checkpoint(tmp_path).config.family == "qwen3_5_text"


def test_what_a_published_configuration_says_beyond_its_class_changes_nothing() -> None:
    """transformers keeps keys that it passes over, so that they stand in every checkpoint made of a published one."""
    published = {
        "attn_output_gate": True,
        "output_gate_type": "swish",
        "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
    }
    written = CONFIG_MAPPING["qwen3_5_text"](**SIZES, **published).to_dict()
    assert published.items() <= written.items()
    assert parse_config(written, "config.json") == parse_config(QWEN3_5, "config.json")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attn_output_gate": False}, "attn_output_gate is false, which is not supported"),
        ({"output_gate_type": "sigmoid"}, "output_gate_type 'sigmoid' is not supported; only swish is"),
        ({"num_experts": 8}, "num_experts is 8, which changes"),
        ({"vision_config": {"depth": 2}}, "vision_config is {'depth': 2}, which changes"),
        ({"model_type": "qwen3_5"}, "model_type 'qwen3_5' is not supported"),
        ({"architectures": ["Qwen3_5ForConditionalGeneration"]}, "supported is Qwen3_5ForCausalLM"),
        ({"rope_parameters": {"long_factor": [1.0]}}, "rope_type default has no such setting"),
    ],
)
def test_what_qwen3_5_does_not_compute_is_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal(QWEN3_5, **given)
