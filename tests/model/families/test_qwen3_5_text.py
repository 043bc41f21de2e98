"""Qwen3.5's text model as transformers reads it, and where the parts of its tensors lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, Qwen3_5TextConfig

from lucid_deploy.model.checkpoint import Checkpoint
from lucid_deploy.model.config_parsing import parse_config
from tests.model.config_samples import refusal
from tests.model.families.read_both import FULL, SIZES
from tests.model.families.test_qwen3_next import LINEAR, stored_rows
from tests.model.family_shapes import HYBRID, random_model

PLAIN = {**SIZES, "model_type": "qwen3_5_text"}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"layer_types": [LINEAR, FULL] * 3, "num_key_value_heads": 8, "tie_word_embeddings": True},
        {"rope_parameters": {"rope_theta": 5e3, "mrope_section": [11, 11, 10], "mrope_interleaved": True}},
    ],
    ids=str,
)
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    ours = parse_config({**PLAIN, **given}, "config.json")
    theirs = CONFIG_MAPPING["qwen3_5_text"](**SIZES, **given)
    assert parse_config(theirs.to_dict(), "config.json") == ours
    assert ours.kinds == tuple("gated_delta" if kind == LINEAR else "standard" for kind in theirs.layer_types)
    assert (ours.rotated, ours.num_key_value_heads) == (64, theirs.num_key_value_heads)
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


def test_the_parts_of_its_tensors_cover_each_row_once() -> None:
    sizes = {"num_attention_heads": 4, "linear_num_value_heads": 6, "linear_num_key_heads": 3}
    stored_rows(parse_config({**PLAIN, **sizes}, "config.json"), CONFIG_MAPPING["qwen3_5_text"](**{**SIZES, **sizes}))


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
    assert parse_config(written, "config.json") == parse_config(PLAIN, "config.json")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"attn_output_gate": False}, "attn_output_gate is false, which is not supported"),
        ({"output_gate_type": "sigmoid"}, "output_gate_type 'sigmoid' is not supported; only swish is"),
        ({"num_experts": 8}, "num_experts is 8, which changes"),
        ({"vision_config": {"depth": 2}}, "vision_config is {'depth': 2}, which changes"),
        ({"model_type": "qwen3_5"}, "model_type 'qwen3_5' is not supported"),
        ({"model_type": "qwen3_5_moe_text"}, "model_type 'qwen3_5_moe_text' is not supported"),
        ({"architectures": ["Qwen3_5ForConditionalGeneration"]}, "supported is Qwen3_5ForCausalLM"),
        ({"rope_parameters": {"long_factor": [1.0]}}, "rope_type default has no such setting"),
    ],
)
def test_what_it_does_not_compute_is_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal(PLAIN, **given)
