"""No key of a configuration is passed over unseen: computed, without effect (transformers shows it), or refused."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lucid_deploy.model.config_keys import NO_EFFECT
from tests.model.config_samples import LLAMA, LUCID, OFFICIAL, parse


def test_the_published_configuration_parses_as_it_stands() -> None:
    config = parse(OFFICIAL)
    assert (config.is_lucid, config.use_rope, config.num_hidden_layers, config.head_dim) == (True, False, 22, 68)


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
    "cache_implementation": "hybrid",  # as in Gemma's files
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


def logits(weights: dict[str, torch.Tensor], **changes: Any) -> torch.Tensor:
    model = LlamaForCausalLM(LlamaConfig(**{**LLAMA, **changes})).double()
    model.load_state_dict(weights)
    with torch.no_grad():
        return model.eval()(torch.arange(30)[None]).logits


def test_keys_without_effect_have_none_in_transformers() -> None:
    """In transformers' Llama, whose attention keeps the same implementation."""
    torch.manual_seed(0)
    weights = LlamaForCausalLM(LlamaConfig(**LLAMA)).state_dict()
    plain = logits(weights, attn_implementation="eager")
    odd = {key: odd_value(key) for key in sorted(NO_EFFECT)}
    assert torch.equal(logits(weights, **{**odd, "attn_implementation": "eager"}), plain)
    assert parse(LUCID, **odd) == parse(LUCID)
