"""Configurations as checkpoints on the Hub have them are accepted; other values of unread keys are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lucid_deploy.errors import LucidError
from lucid_deploy.model.build import parse_model_config
from lucid_deploy.model.transformers_class.module import make_class, restore_buffers
from tests.model.transformers_class.published_configs import PUBLISHED, published_config


def test_published_configurations_are_accepted() -> None:
    refused = {}
    for name in PUBLISHED:
        try:
            parse_model_config(published_config(name), "config.json")
        except LucidError as error:
            refused[name] = str(error)
    assert not refused


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("deepseek-ai/DeepSeek-V3", "scoring_func", "softmax"),
        ("deepseek-ai/DeepSeek-V3", "moe_layer_freq", 2),
        ("openai/gpt-oss-20b", "initial_context_length", 8192),
        ("openai/gpt-oss-20b", "scoring_func", "sigmoid"),
        ("CohereForAI/c4ai-command-r7b-12-2024", "layer_switch", 2),
        ("bigcode/starcoder2-3b", "norm_type", "rms_norm"),
        ("bigcode/starcoder2-3b", "layer_norm_epsilon", 1e-6),
        ("tencent/Hunyuan-1.8B-Instruct", "use_cla", True),
        ("nvidia/Minitron-4B-Base", "rope_percent", 1.0),
        ("swiss-ai/Apertus-8B-2509", "post_norm", True),
        ("Qwen/Qwen3.5-4B", "attn_output_gate", False),
        ("Qwen/Qwen3.5-4B", "output_gate_type", "sigmoid"),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", "use_sliding_window", True),
    ],
)
def test_another_value_is_refused(name: str, key: str, value: Any) -> None:
    with pytest.raises(LucidError, match=f"does not know the key {key} of config.json, which is"):
        parse_model_config({**published_config(name), key: value}, "config.json")


def test_hunyuan_stretches_its_positions() -> None:
    """Its file calls that dynamic, which elsewhere is the default for texts that are not too long."""
    raw = published_config("tencent/Hunyuan-1.8B-Instruct")
    kept = parse_model_config(raw, "config.json").class_config
    with torch.device("meta"):
        net = make_class(kept)
    restore_buffers(net)
    theirs: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**raw))
    torch.testing.assert_close(net.model.rotary_emb.inv_freq.float(), theirs.model.rotary_emb.inv_freq)
    llama = {**published_config("arcee-ai/AFM-4.5B"), "rope_scaling": raw["rope_scaling"]}
    with pytest.raises(LucidError, match="'dynamic', which changes with the length"):
        parse_model_config(llama, "config.json")
