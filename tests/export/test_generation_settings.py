"""What a checkpoint asks for of ``generate``, held against what transformers does with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from lucid_deploy.export.companions import CHANGES, SAMPLING, settings_note

# What transformers takes that does not change which token comes next: ids that we read too, lengths, what is returned,
# how it is computed, and the drafts of its own assistants.
OTHERS = {
    *("_from_model_config", "bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id"),
    *("max_length", "max_new_tokens", "max_time", "num_return_sequences", "transformers_version"),
    *("output_attentions", "output_hidden_states", "output_logits", "output_scores", "return_dict_in_generate"),
    *("cache_config", "cache_implementation", "compile_config", "continuous_batching_config", "disable_compile"),
    *("low_memory", "max_cache_len", "prefill_chunk_size", "use_cache", "remove_invalid_values", "renormalize_logits"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind"),
    *("is_assistant", "max_matching_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("prompt_lookup_num_tokens", "speculation_type", "target_lookbehind", "use_mtp"),
}


def write(directory: Path, **settings: Any) -> Path:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **settings}))
    return directory


def test_all_settings_of_transformers_are_known() -> None:
    assert set(GenerationConfig().to_dict()) == {*CHANGES, *SAMPLING, *OTHERS}
    assert not OTHERS & {*CHANGES, *SAMPLING}


def make_model(vocabulary: int) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, eos_token_id=None, **sizes)).eval()


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(20)


def generated(model: Any, directory: Path, **settings: Any) -> list[int]:
    """Return what transformers generates with the settings in a file."""
    torch.manual_seed(0)
    config = GenerationConfig.from_pretrained(str(write(directory, **settings)))
    config.max_new_tokens, config.eos_token_id, config.pad_token_id = 12, None, 0
    row: list[int] = model.generate(torch.tensor([[3, 4, 3, 4]]), generation_config=config)[0].tolist()
    return row


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"repetition_penalty": 9.5}, "asks for repetition_penalty 9.5: transformers"),
        ({"no_repeat_ngram_size": 2}, "asks for no_repeat_ngram_size 2: transformers"),
        ({"suppress_tokens": list(range(2, 12))}, "asks for suppress_tokens: transformers"),
        (
            {"do_sample": True, "temperature": 9.0, "top_p": 1.0, "top_k": None},
            "asks for do_sample true, temperature 9.0, top_k 50 (transformers' default): transformers",
        ),
        ({"do_sample": True}, "asks for do_sample true, top_k 50 (transformers' default): transformers"),
        ({"do_sample": True, "top_k": 0}, "asks for do_sample true: transformers"),
        ({"do_sample": True, "top_k": 7}, "asks for do_sample true, top_k 7: transformers"),
        ({"temperature": 0.7, "top_p": 0.8, "top_k": 20}, None),
        ({"do_sample": False, "repetition_penalty": 1.0, "num_beams": 1, "max_length": 20, "use_cache": True}, None),
        ({"unheard_of": 3}, None),
    ],
)
def test_settings_are_named_that_change_what_transformers_generates(
    settings: dict[str, Any], said: str | None, model: Any, tmp_path: Path
) -> None:
    plain = generated(model, tmp_path)
    assert (generated(model, tmp_path, **settings) != plain) == (said is not None)
    notes = settings_note(write(tmp_path, **settings))
    assert notes == () if said is None else said in notes[0]
