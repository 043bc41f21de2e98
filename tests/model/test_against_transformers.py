"""An independent reference: Hugging Face's Llama, its attention replaced by the dense formula in float64.

It shares no code with the package: its own checkpoints, RoPE, masks and triangular solve.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch.session import TorchSession

SHAPES: dict[str, dict[str, Any]] = {
    "one query head per key head": {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 36},
    "four, head_dim 64, tied, biases": {
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "two, head_dim 68": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 68},
    "no rope": {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 36, "use_rope": False},
    "linear rope": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_scaling": {"rope_type": "linear", "factor": 2.5, "rope_theta": 5000.0},
    },
    "llama3 rope": {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "rope_scaling": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "standard attention": {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 24,
        "attention_type": "llama",
    },
}


def dense_lucid_attention(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
) -> tuple[torch.Tensor, None]:
    """The formula, over the whole sequence, as an attention function of transformers."""
    groups, d = query.shape[1] // key.shape[1], key.shape[3]
    n = key.shape[2]
    if module.config.attention_type != "llama":
        k_hat = key / torch.sqrt((key * key).mean(-1, keepdim=True) + module.config.rms_norm_eps)
        full = torch.exp(k_hat @ k_hat.transpose(2, 3) / math.sqrt(d) - math.sqrt(d))
        system = torch.tril(full, -1) + torch.eye(n, dtype=key.dtype)
        # One by one: with two threads, the inverse of a batch never returns on some processors, or is wrong.
        inverse = torch.stack([torch.linalg.inv(one) for one in system.flatten(0, 1)])
        value = inverse.unflatten(0, system.shape[:2]) @ value
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) / math.sqrt(d)
    scores = scores.masked_fill(torch.triu(torch.ones(n, n, dtype=torch.bool), 1), float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


@pytest.fixture(scope="module", params=SHAPES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A float64 model of transformers with the dense formula, and the float32 checkpoint it was saved as."""
    shape = {"attention_type": "oglucid", "use_rope": True, **SHAPES[request.param]}
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        max_position_embeddings=400,
        rms_norm_eps=1e-5,
        **shape,
    )
    torch.manual_seed(1)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.25)
            elif "norm" not in str(parameter.shape):
                parameter.add_(0.1 * torch.randn_like(parameter))
        model.model.embed_tokens.weight.add_(0.5 * torch.randn(config.hidden_size))
    path = tmp_path_factory.mktemp("llama")
    model.save_pretrained(path)
    modeling_llama.ALL_ATTENTION_FUNCTIONS["dense_lucid"] = dense_lucid_attention
    model = model.double().eval()
    model.set_attn_implementation("dense_lucid")
    with pytest.MonkeyPatch.context() as patch:
        if not shape["use_rope"]:
            patch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *_, **__: (q, k))
        yield model, path


def ids() -> np.ndarray:
    tokens = np.random.default_rng(0).integers(0, 61, (2, 150))
    tokens[1, 20:120] = 7  # one token repeated
    return tokens


def wanted(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids()), use_cache=False).logits[:, -1:].numpy()


def test_the_float64_model_is_the_independent_one(pair: tuple[Any, Path]) -> None:
    model, path = pair
    session = TorchSession(load_model(path, torch.float64))
    logits = session.prefill(ids(), session.empty_cache(2))
    # RoPE tables are float32 in transformers whatever the model's type: that rounding is all that may differ.
    np.testing.assert_allclose(logits, wanted(model), rtol=0, atol=2e-5 * np.abs(wanted(model)).max())
