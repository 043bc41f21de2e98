"""No key of a configuration is passed over unseen: computed, without effect (transformers shows it), or refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig, parse_config
from lucid_deploy.model.config_keys import CHANGES, COMPUTED, KNOWN, NO_EFFECT, WITH_OTHERS

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LUCID = {**LLAMA, "attention_type": "lucid"}
# The configuration file that the authors published, as it stands.
OFFICIAL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 68,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 5632,
    "max_position_embeddings": 2048,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 22,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.54.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
    "attention_type": "oglucid",
    "use_forget_gate": False,
    "use_rope": False,
    "use_token_grad_clip": False,
    "key_scaling_exp": 0,
    "which_rmsnorm": "exp_k_norm",
    "use_beta": True,
}


def parse(base: dict[str, Any] | None = None, assume_unused: tuple[str, ...] = (), **changes: Any) -> LucidConfig:
    return parse_config({**(LLAMA if base is None else base), **changes}, "config.json", assume_unused)


def refusal(base: dict[str, Any] | None = None, assume_unused: tuple[str, ...] = (), **changes: Any) -> str:
    with pytest.raises(LucidError) as caught:
        parse(base, assume_unused, **changes)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert message.startswith("config.json: ")
    assert "\n" not in message
    return message


def test_the_published_configuration_parses_as_it_stands() -> None:
    config = parse(OFFICIAL)
    assert (config.is_lucid, config.use_rope, config.num_hidden_layers, config.head_dim) == (True, False, 22, 68)


def test_every_key_is_in_one_table() -> None:
    tables = [COMPUTED, NO_EFFECT, frozenset(CHANGES), WITH_OTHERS]
    assert sum(map(len, tables)) == len(KNOWN) == len(frozenset().union(*tables))


# Values that would show: those that a model in training or another head would use.
ODD: dict[str, Any] = {
    "attn_implementation": "eager",
    "_attn_implementation": "eager",
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
    "id2label": {0: "a"},
    "label2id": {"a": 0},
    "problem_type": "regression",
    "initializer_range": 0.9,
    "task_specific_params": {"a": {"b": 1}},
    "transformers_version": "4.0.0",
    "tokenizer_class": "T5Tokenizer",
    "return_dict": True,  # transformers 5.24 fails with false
    "bad_words_ids": [[1]],
    "suppress_tokens": [1, 2],
    "begin_suppress_tokens": [1],
    "prefix": "a",
}
PROBABILITIES = ("dropout", "pdrop", "temperature", "top_p", "typical_p", "penalty", "alpha")


def odd_value(key: str) -> Any:
    if key in ODD:
        return ODD[key]
    if any(part in key for part in PROBABILITIES):
        return 0.5
    return 3 if key.startswith(("num_", "max_", "min_", "top_", "no_", "pretr", "chunk")) or "token" in key else True


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**LLAMA)).state_dict()


def logits(weights: dict[str, torch.Tensor], **changes: Any) -> torch.Tensor:
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, **changes})).double()
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.eval()(torch.arange(30)[None]).logits


@pytest.mark.parametrize("key", sorted(NO_EFFECT))
def test_what_has_no_effect_here_has_none_in_transformers(weights: dict[str, torch.Tensor], key: str) -> None:
    """The oracle for the table: transformers' Llama, its attention in the same implementation."""
    value = odd_value(key)
    plain = logits(weights, attn_implementation="eager")
    assert torch.equal(logits(weights, **{"attn_implementation": "eager", key: value}), plain)
    assert parse(LUCID, **{key: value}) == parse(LUCID)


@pytest.mark.parametrize(
    ("key", "value", "does"),
    [
        ("embedding_multiplier", 12.0, "It scales the embeddings"),
        ("logits_scaling", 8, "It scales the logits"),
        ("residual_multiplier", 0.22, "It scales the residuals"),
        ("attention_multiplier", 0.015625, "It scales the attention scores"),
        ("final_logit_softcapping", 30.0, "It caps the logits"),
        ("sliding_window", 128, "Attention over a window is another model"),
        ("layer_types", ["full_attention", "sliding_attention"], "It makes layers of several kinds"),
        ("no_rope_layers", [1, 0], "It leaves layers without positions"),
        ("partial_rotary_factor", 0.5, "It rotates a part of each head only"),
        ("use_qk_norm", True, "It normalises queries and keys"),
        ("hidden_activation", "gelu_pytorch_tanh", "It makes MLPs of another kind"),
        ("num_local_experts", 8, "mixtures of experts"),
        ("is_causal", False, "Attention to later tokens is another model"),
        ("quantization_config", {"bits": 4}, "Its weights are quantized"),
        ("auto_map", {"AutoModelForCausalLM": "m.M"}, "A file of code that comes with the checkpoint"),
        ("text_config", {"vocab_size": 3}, "It describes a model inside of another"),
        ("embedding_multiplier", True, "It scales the embeddings"),
    ],
)
def test_a_key_that_changes_the_numbers_is_refused(key: str, value: Any, does: str) -> None:
    message = refusal(**{key: value})
    assert f"{key} is {value!r}" in message
    assert does in message
    assert "not supported" in message
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


def test_all_refused_keys_are_in_one_message() -> None:
    message = refusal(embedding_multiplier=12.0, logits_scaling=8.0, sliding_window=4)
    assert all(name in message for name in ("embedding_multiplier is 12.0", "logits_scaling is 8.0", "sliding_window"))


def test_a_key_that_no_table_lists_is_refused_and_the_way_past_it_is_named() -> None:
    message = refusal(zeta_gain=3, another={"a": "b" * 100})
    assert "another is {'a': 'bbb" in message
    assert len(message) < 500
    assert "; zeta_gain is 3." in message
    assert message.endswith("export with --assume-unused another --assume-unused zeta_gain")


def test_an_unknown_key_can_be_assumed_unused() -> None:
    assert parse(assume_unused=("zeta_gain",), zeta_gain=3) == parse()
    assert "eta_gain is 4" in refusal(assume_unused=("zeta_gain",), zeta_gain=3, eta_gain=4)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("attention_typ", "attention_type"),
        ("attentiontype", "attention_type"),
        ("use_ropes", "use_rope"),
        ("rms_norm_epsilon", "rms_norm_eps"),
        ("num_key_value_head", "num_key_value_heads"),
        ("slidingwindow", "sliding_window"),
        ("embeddings_multiplier", "embedding_multiplier"),
        ("pad_tokenid", "pad_token_id"),
        ("rope_parameter", "rope_parameters"),
    ],
)
def test_a_near_miss_is_named_with_the_key_that_is_meant(key: str, meant: str) -> None:
    assert f"(is {meant} meant?)" in refusal(**{key: None})
    assert f"(is {meant} meant?)" in refusal(LUCID, **{key: 3})


def test_a_misspelt_attention_type_is_not_standard_attention() -> None:
    message = refusal(attention_typ="lucid", which_rmsnorm="exp_k_norm")
    assert "attention_type is missing, beside which_rmsnorm" in message
    assert "Is attention_typ a misspelling of it?" in message


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
        ({"rope_type": "default", "rope_thet": 1}, "rope_thet is 1 (is rope_theta meant?)"),
        ({"rope_type": ["linear"]}, "rope_type must be a string, not ['linear']"),
        ({"rope_type": "linear", "factor": True}, "factor must be a positive number, not True"),
    ],
)
def test_keys_of_rope_blocks_are_checked_too(block: str, inside: dict[str, Any], said: str) -> None:
    message = refusal(**{block: inside})
    assert said in message


@BLOCKS
def test_an_unknown_key_of_a_rope_block_can_be_assumed_unused(block: str) -> None:
    inside = {"rope_type": "linear", "factor": 2.0}
    plain = parse(**{block: inside})
    assert parse(assume_unused=(f"{block}.zeta",), **{block: {**inside, "zeta": 1}}) == plain
    assert "known to change the numbers" in refusal(assume_unused=(f"{block}.beta_fast",), **{block: inside})


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


@pytest.mark.parametrize("kind", ["falcon", "lucid_path_attn", "Llama", "", 7, ["llama"]])
def test_another_model_type_is_refused(kind: Any) -> None:
    assert f"model_type {kind!r} is not supported; supported are llama, mistral" in refusal(model_type=kind)


def test_another_model_type_names_the_keys_that_would_be_wrong() -> None:
    message = refusal(model_type="minicpm", architectures=["MiniCPMForCausalLM"], embedding_multiplier=12)
    assert "model_type 'minicpm' (MiniCPMForCausalLM) is not supported" in message
    assert "embedding_multiplier is 12" in message


def test_a_model_type_may_be_missing_where_another_key_says_the_same() -> None:
    bare = {key: value for key, value in LLAMA.items() if key != "model_type"}
    assert parse(bare, attention_type="lucid") == parse(LUCID)
    assert parse(bare, architectures=["LlamaForCausalLM"]) == parse()
    message = refusal(bare)
    assert "model_type is missing" in message
    assert 'Add "model_type": "llama"' in message


@pytest.mark.parametrize("names", [["LlamaForSequenceClassification"], ["LlamaModel"], ["MistralForCausalLM"]])
def test_other_architectures_are_refused(names: list[str]) -> None:
    message = refusal(architectures=names)
    assert f"architectures {names!r} is not supported with model_type 'llama'; supported is LlamaForCausalLM" in message


@pytest.mark.parametrize("names", ["LlamaForCausalLM", [3], {"a": 1}])
def test_architectures_are_a_list_of_names(names: Any) -> None:
    assert f"architectures must be a list of names, not {names!r}" in refusal(architectures=names)


MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": None}


def test_mistral_without_a_window_is_taken_with_its_own_defaults() -> None:
    bare = {
        key: value for key, value in MISTRAL.items() if key not in ("max_position_embeddings", "num_key_value_heads")
    }
    config = parse(bare, num_attention_heads=8)
    assert (config.max_position_embeddings, config.num_key_value_heads) == (131072, 8)
    assert parse(MISTRAL) == dataclasses.replace(parse(), family="mistral")


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}])
def test_biases_that_mistral_does_not_make_are_refused(changes: dict[str, Any]) -> None:
    assert f"{next(iter(changes))} is True. Mistral's code makes no biases" in refusal(MISTRAL, **changes)


@pytest.mark.parametrize("changes", [{}, {"use_sliding_window": False, "sliding_window": 4096}])
def test_a_window_that_mistral_leaves_out_is_not_none(changes: dict[str, Any]) -> None:
    """Its code asks for sliding_window and nothing else."""
    bare = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    config = parse(bare, **changes)
    assert (config.kinds, config.sliding_window) == (("window", "window"), 4096)


LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        (LAYERS, ("window", "lucid")),
        ({"lucid_layers": [1]}, ("standard", "lucid")),
        ({**LAYERS, "lucid_layers": [1]}, ("window", "lucid")),
        ({"lucid_layers": None}, ("lucid", "lucid")),
        ({"lucid_layers": [1, 0]}, ("lucid", "lucid")),
    ],
)
def test_layers_are_named_in_two_ways(changes: dict[str, Any], kinds: tuple[str, ...]) -> None:
    config = parse(LUCID, **changes)
    assert config.kinds == kinds
    assert config.sliding_window == (5 if "window" in kinds else None)
    assert LucidConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({**LAYERS, "layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers is 2"),
        ({**LAYERS, "layer_types": ["full_attention", "linear"]}, "layer_types names 'linear', which is not supported"),
        ({**LAYERS, "sliding_window": None}, "sliding_window does not say over how many tokens"),
        ({**LAYERS, "sliding_window": 0}, "sliding_window must be a positive whole number, not 0"),
        ({**LAYERS, "sliding_window": True}, "sliding_window must be a positive whole number, not True"),
        (
            {**LAYERS, "layer_types": ["sliding_attention"] * 2},
            "all layers attend over a window, so that none is",
        ),
        ({**LAYERS, "layer_types": "full_attention"}, "layer_types must be a list of names"),
        ({**LAYERS, "lucid_layers": [0]}, "lucid_layers names layer 0, which attends over a window"),
        ({"lucid_layers": [2]}, "lucid_layers names layer 2; it lists layers, counted from 0, of 2"),
        ({"lucid_layers": [1, 1]}, "lucid_layers names a layer twice"),
        ({"lucid_layers": []}, "lucid_layers names no layer"),
        ({"lucid_layers": [-1]}, "lucid_layers must be a list of layers, counted from 0"),
        ({"lucid_layers": 1}, "lucid_layers must be a list of layers, counted from 0"),
        ({"sliding_window": 5}, "sliding_window is 5. Attention over a window"),
        ({"lucid_layers": [1], "layer_kinds": ["lucid", "lucid"]}, "layer_kinds and layer_types or lucid_layers"),
        ({"attention_type": "llama", "lucid_layers": [1]}, "lucid_layers is [1]. It makes layers of several kinds"),
    ],
)
def test_layers_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(LUCID, **changes)
