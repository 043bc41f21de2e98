"""A configuration is taken whole or refused by the names of its keys."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model.config_samples import OFFICIAL, parse, refusal


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embedding_multiplier", 12.0),
        ("logits_scaling", 8),
        ("residual_multiplier", 0.22),
        ("attention_multiplier", 0.015625),
        ("final_logit_softcapping", 30.0),
        ("sliding_window", 128),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("no_rope_layers", [1, 0]),
        ("partial_rotary_factor", 0.5),
        ("use_qk_norm", True),
        ("hidden_activation", "gelu_pytorch_tanh"),
        ("num_local_experts", 8),
        ("is_causal", False),
        ("quantization_config", {"bits": 4}),
        ("auto_map", {"AutoModelForCausalLM": "m.M"}),
        ("text_config", {"vocab_size": 3}),
        ("embedding_multiplier", True),
    ],
)
def test_a_key_that_changes_the_numbers_is_refused(key: str, value: Any) -> None:
    message = refusal(**{key: value})
    assert f"{key} is {value!r}, which changes what the model computes and is not supported" in message
    assert "Remove a key from the file only if" in message
    assert "known to change the numbers" in refusal(assume_unused=(key,), **{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("embedding_multiplier", 1.0),
        ("logits_scaling", 1),
        ("sliding_window", None),
        ("layer_types", ["full_attention", "full_attention"]),
        ("no_rope_layers", [1, 1]),
        ("partial_rotary_factor", 1.0),
        ("use_qk_norm", False),
        ("is_causal", True),
        ("quantization_config", None),
        ("num_experts", 0),
        ("key_scaling_exp", 0.0),
    ],
)
def test_a_value_that_asks_for_nothing_is_taken(key: str, value: Any) -> None:
    assert parse(**{key: value}) == parse()


def test_a_key_that_no_table_lists_is_refused_and_the_way_past_it_is_named() -> None:
    message = refusal(zeta_gain=3, another={"a": "b" * 100})
    assert "another is {'a': 'bbb" in message
    assert len(message) < 500
    assert "; zeta_gain is 3." in message
    assert message.endswith("export with --assume-unused another --assume-unused zeta_gain")


def test_a_misspelt_attention_type_is_not_standard_attention() -> None:
    message = refusal(attention_typ="lucid", which_rmsnorm="exp_k_norm")
    assert "attention_type is missing, beside which_rmsnorm" in message


@pytest.mark.parametrize("key", ["use_beta", "use_rope", "which_rmsnorm", "use_token_grad_clip", "use_qknorm"])
def test_lucids_keys_need_the_one_that_says_which_attention(key: str) -> None:
    assert f"attention_type is missing, beside {key}" in refusal(**{key: OFFICIAL.get(key, True)})


BLOCKS = pytest.mark.parametrize("block", ["rope_scaling", "rope_parameters"])


@BLOCKS
@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ({"rope_type": "default", "factor": 8.0}, "factor is 8.0. rope_type default has no such setting"),
        ({"type": "linear", "factor": 2.0, "beta_fast": 32}, "beta_fast is 32"),
        ({"rope_type": "linear", "factor": 2.0, "attention_factor": 0.7}, "attention_factor is 0.7"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_type": "linear", "type": "mrope", "factor": 2.0}, "has rope_type 'linear' and type 'mrope'"),
        ({"rope_type": "default", "mrope_section": [2, 2]}, "mrope_section is [2, 2]"),
        ({"full_attention": {"rope_type": "default"}}, "full_attention is {"),
        ({"rope_type": "default", "zeta": 1}, "zeta is 1. This key is not known here"),
        ({"rope_type": "default", "rope_thet": 1}, "rope_thet is 1. This key is not known here"),
        ({"rope_type": ["linear"]}, "Expected `str`, got `array` - at `$.rope_type`"),
        ({"rope_type": "linear", "factor": True}, "Expected `float`, got `bool` - at `$.factor`"),
    ],
)
def test_keys_of_rope_blocks_are_checked_too(block: str, inside: dict[str, Any], said: str) -> None:
    message = refusal(**{block: inside})
    assert said in message


def test_two_rope_blocks_that_differ_are_refused() -> None:
    linear, other = {"rope_type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 4.0}
    assert parse(rope_scaling=linear, rope_parameters=linear) == parse(rope_scaling=linear)
    assert "rope_scaling and rope_parameters differ" in refusal(rope_scaling=linear, rope_parameters=other)
    assert parse(rope_scaling=None, rope_parameters=other) == parse(rope_parameters=other)


def test_an_original_context_outside_of_the_block_must_be_the_same() -> None:
    block = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    assert parse(rope_parameters=block, original_max_position_embeddings=64) == parse(rope_parameters=block)
    message = refusal(rope_parameters=block, original_max_position_embeddings=32)
    assert "original_max_position_embeddings is 32, and another in rope_parameters" in message


@pytest.mark.parametrize("names", [["LlamaForSequenceClassification"], ["LlamaModel"], ["MistralForCausalLM"]])
def test_other_architectures_are_refused(names: list[str]) -> None:
    message = refusal(architectures=names)
    assert f"architectures {names!r} is not supported with model_type 'llama'; supported is LlamaForCausalLM" in message
