"""Small models of every family, in several shapes, as transformers' own classes make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3NextConfig,
    SmolLM3Config,
)

from tests.model.config_samples import LLAMA

SMALL: dict[str, Any] = {**LLAMA, "max_position_embeddings": 200}
del SMALL["model_type"]
_TOKENS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
THREE = {**SMALL, "num_hidden_layers": 3, **_TOKENS}
_LOCAL = {"rope_type": "default", "rope_theta": 1e3}
_GLOBAL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}
FULL, LINEAR = "full_attention", "linear_attention"
HYBRID = {
    **THREE,
    "head_dim": 16,
    "full_attention_interval": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
}
MIXED = ["full_attention", "sliding_attention", "full_attention"]
EXPERTS: dict[str, Any] = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 20,
}
SHAPES: dict[str, dict[str, Callable[[], PreTrainedConfig]]] = {
    "mistral": {
        "no window": lambda: MistralConfig(**SMALL, sliding_window=None),
        "one key head": lambda: MistralConfig(
            **{**SMALL, "num_key_value_heads": 1}, sliding_window=None, head_dim=24, rms_norm_eps=1e-5
        ),
        "window": lambda: MistralConfig(**THREE, sliding_window=9),
        "a window of one": lambda: MistralConfig(**SMALL, sliding_window=1),
        "a window beyond the text": lambda: MistralConfig(**SMALL, sliding_window=4096),
    },
    "qwen2": {
        "plain": lambda: Qwen2Config(**SMALL, tie_word_embeddings=True),
        "window": lambda: Qwen2Config(**THREE, use_sliding_window=True, sliding_window=7, max_window_layers=1),
    },
    "qwen3": {
        "wide heads": lambda: Qwen3Config(**SMALL, head_dim=20, attention_bias=True),
        "window": lambda: Qwen3Config(
            **THREE, head_dim=12, use_sliding_window=True, sliding_window=7, layer_types=MIXED
        ),
    },
    "granite": {
        "multipliers": lambda: GraniteConfig(
            **SMALL, embedding_multiplier=6.0, residual_multiplier=0.4, attention_multiplier=0.2, logits_scaling=3.0
        ),
        "biases, one key head": lambda: GraniteConfig(
            **{**SMALL, "num_key_value_heads": 1}, attention_bias=True, mlp_bias=True, attention_multiplier=0.5
        ),
    },
    "smollm3": {
        "listed": lambda: SmolLM3Config(**THREE, no_rope_layers=[1, 0, 1]),
        "window": lambda: SmolLM3Config(
            **THREE, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=8, tie_word_embeddings=False
        ),
    },
    "phi3": {
        "no window": lambda: Phi3Config(**{**SMALL, **_TOKENS}, sliding_window=None),
        "window": lambda: Phi3Config(**THREE, sliding_window=11),
    },
    "gemma3_text": {
        "pattern": lambda: Gemma3TextConfig(
            **THREE, head_dim=16, sliding_window=10, sliding_window_pattern=3, query_pre_attn_scalar=20
        ),
        "listed, two bases": lambda: Gemma3TextConfig(
            **THREE,
            head_dim=16,
            sliding_window=6,
            layer_types=MIXED,
            rope_parameters={"full_attention": _GLOBAL, "sliding_attention": _LOCAL},
            attention_bias=True,
        ),
    },
    "qwen3_next": {
        "biases, wide values": lambda: Qwen3NextConfig(
            **HYBRID, num_experts=0, attention_bias=True, linear_value_head_dim=12, partial_rotary_factor=0.5
        ),
        "listed, no experts by layer": lambda: Qwen3NextConfig(
            **HYBRID, mlp_only_layers=[0, 1, 2], layer_types=[LINEAR, FULL, LINEAR], linear_conv_kernel_dim=3
        ),
        "experts": lambda: Qwen3NextConfig(**HYBRID, **EXPERTS, mlp_only_layers=[1], norm_topk_prob=False),
    },
    "qwen3_5_moe_text": {"experts": lambda: Qwen3_5MoeTextConfig(**HYBRID, **EXPERTS)},
    "qwen3_5_text": {
        "tied": lambda: Qwen3_5TextConfig(**HYBRID, tie_word_embeddings=True),
        "listed": lambda: Qwen3_5TextConfig(
            **HYBRID,
            layer_types=[LINEAR, LINEAR, FULL],
            linear_value_head_dim=10,
            rope_parameters={**_LOCAL, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]},
        ),
    },
}


def random_model(config: PreTrainedConfig) -> Any:
    """A random model whose weights are large enough that every part of it matters, in float64.

    Tokens share a direction that the keys see, so that keys are correlated, as trained ones are.
    """
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.25) if parameter.dim() == 2 else parameter.add_(0.3 * torch.randn_like(parameter))
        model.model.embed_tokens.weight.add_(0.25 * torch.randn(config.hidden_size))
    return model
