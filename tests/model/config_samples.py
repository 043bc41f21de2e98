"""Configurations to change, and what they are refused with."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_parsing import parse_config

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
# A scaling of rotary frequencies.
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
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
