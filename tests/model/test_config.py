"""Reading config.json: both spellings of transformers, defaults, and everything that is refused."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig, RopeScaling
from lucid_deploy.model.config_parsing import parse_config
from tests.model.config_samples import LLAMA3

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
MINIMAL: dict[str, Any] = {"model_type": "llama", **SIZES}


def parse(**changes: Any) -> LucidConfig:
    return parse_config({**MINIMAL, **changes}, "config.json")


def refusal(**changes: Any) -> str:
    with pytest.raises(LucidError) as caught:
        parse(**changes)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_what_llama_leaves_out_is_what_transformers_fills_in() -> None:
    assert parse() == LucidConfig(
        **SIZES,
        num_key_value_heads=4,
        head_dim=16,
        rms_norm_eps=1e-6,
        max_position_embeddings=2048,
        attention_type="llama",
        use_rope=True,
        rope_theta=10000.0,
        rope_scaling=RopeScaling(),
    )


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id"])
def test_a_token_outside_of_the_vocabulary_is_refused(key: str) -> None:
    size = parse().vocab_size
    parse(**{key: size - 1})
    assert f"token {size}, a bos_token_id or eos_token_id, is outside the vocabulary" in refusal(**{key: size})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_type": "mamba"}, "attention_type 'mamba'"),
        ({"attention_type": ["lucid"]}, "attention_type ['lucid']"),
        ({"attention_type": "lucid", "which_rmsnorm": "none"}, "which_rmsnorm 'none'"),
        ({"attention_type": "lucid", "use_forget_gate": True}, "use_forget_gate"),
        ({"attention_type": "lucid", "key_scaling_exp": 1}, "key_scaling_exp is 1"),
        ({"attention_type": "lucid", "key_scaling_exp": False}, "key_scaling_exp is False"),
        ({"attention_type": "lucid_path"}, "attention_type 'lucid_path'"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "rope_scaling 'longrope'"),
        ({"rope_scaling": {"type": "su", "factor": 4.0}}, "llama3. It switches its frequencies at some text length"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "alpha": 2}}, "alpha is 2"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"sliding_window": 128}, "sliding_window is 128"),
    ],
)
def test_a_variant_that_is_not_supported_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    message = refusal(**changes)
    assert named in message
    assert "not supported" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", "97"),
        ("vocab_size", 97.0),
        ("hidden_size", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 10**9),
        ("vocab_size", 10**30),
        ("num_attention_heads", 0),
        ("head_dim", [64]),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", 0),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", float("inf")),
        ("rope_scaling", "linear"),
        ("tie_word_embeddings", 1),
        ("attention_bias", "no"),
        ("mlp_bias", "true"),
        ("eos_token_id", "</s>"),
        ("eos_token_id", [1, -1]),
        ("eos_token_id", -1),
        ("bos_token_id", 1.5),
    ],
)
def test_an_impossible_value_is_refused_with_its_key(key: str, value: Any) -> None:
    message = refusal(**{key: value})
    assert message.startswith("config.json: ")
    assert key in message or "rope settings" in message


def test_query_heads_must_be_a_multiple_of_key_value_heads() -> None:
    assert "num_attention_heads (4) is not a multiple of num_key_value_heads (3)" in refusal(num_key_value_heads=3)


def test_an_odd_head_dim_needs_a_model_without_rope() -> None:
    assert "even head_dim, not 35" in refusal(head_dim=35)
    assert parse(attention_type="lucid", head_dim=35, use_rope=False).head_dim == 35


def test_a_configuration_survives_to_dict_and_back() -> None:
    config = parse(attention_type="lucid", rope_scaling={"type": "llama3", **LLAMA3}, eos_token_id=[1, 2], head_dim=68)
    assert LucidConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("key", ["attention_type", "another"])
def test_from_dict_refuses_fields_that_are_missing_or_unknown(key: str) -> None:
    data = parse().to_dict()
    data = {**data, key: 1} if key not in data else {name: value for name, value in data.items() if name != key}
    with pytest.raises(KeyError, match=key):
        LucidConfig.from_dict(data)
