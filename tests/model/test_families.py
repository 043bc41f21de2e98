"""Families and layers over windows, against transformers' own classes and against a solve put into them, in float64.

One-shot, chunked, token by token and padded, in PyTorch; graphs over windows are those of the training diagonal.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen3Config,
    Qwen3NextConfig,
)
from transformers.masking_utils import eager_mask
from transformers.models.llama import modeling_llama

from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.model.family_shapes import HYBRID, MIXED, SHAPES, SMALL, THREE, random_model
from tests.model.float64_throughout import float64_throughout
from tests.model.sequence_runs import check_sequences, relative_error, token_ids

GATE = 1e-4  # relative, of logits in float32


def lucid_attention(
    module: Any, query: Any, key: Any, value: Any, *_: Any, sliding_window: int | None = None, **options: Any
) -> tuple[torch.Tensor, None]:
    """LUCID where the configuration says so, else softmax; shares nothing with the product."""
    n, d, groups = key.shape[2], key.shape[3], query.shape[1] // key.shape[1]
    if module.layer_idx in module.config.solved:
        k_hat = key / torch.sqrt((key * key).mean(-1, keepdim=True) + module.config.rms_norm_eps)
        e = torch.exp(k_hat @ k_hat.mT / math.sqrt(d) - math.sqrt(d))
        system = e.tril() if getattr(module.config, "training", False) else e.tril(-1) + torch.eye(n, dtype=key.dtype)
        value = torch.stack([torch.linalg.inv(one) for one in system.flatten(0, 1)]).view(system.shape) @ value
    scores = query @ key.repeat_interleave(groups, 1).mT * (options.get("scaling") or d**-0.5)
    age = torch.arange(n)[:, None] - torch.arange(n)  # of each key to each query
    scores = scores.masked_fill((age < 0) | (age >= (sliding_window or n)), -torch.inf)
    return (scores.softmax(-1) @ value.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), None


def normed_after_rotation(module: Any, query: Any, key: Any, *rest: Any, **options: Any) -> tuple[torch.Tensor, None]:
    """The authors' standard baseline: norms with weights behind the rotary embedding."""

    def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + module.config.rms_norm_eps) * weight

    query, key = normed(query, module.q_norm.weight), normed(key, module.k_norm.weight)
    return modeling_llama.eager_attention_forward(module, query, key, *rest, **options)[0], None


AttentionInterface.register("lucid_dense", lucid_attention)
AttentionMaskInterface.register("normed_after_rotation", eager_mask)
AttentionInterface.register("normed_after_rotation", normed_after_rotation)


def baseline() -> Any:
    model = random_model(LlamaConfig(**SMALL, attention_type="llama", use_qknorm=True))
    for layer in model.model.layers:
        for name in ("q_norm", "k_norm"):
            layer.self_attn.add_module(name, modeling_llama.LlamaRMSNorm(12).double())
            getattr(layer.self_attn, name).weight.data.add_(0.5 * torch.randn(12))
    return model


BASELINE = "the authors' baseline"
MODELS: dict[str, Any] = {name: list(SHAPES[name].values())[-1] for name in ("qwen3_next", "phi3")}
MODELS["mistral"] = SHAPES["mistral"]["window"]
# LUCID in the layers that attend to all tokens: by layer_types, or named one by one.
LUCID: dict[str, tuple[Any, tuple[int, ...]]] = {
    "lucid gemma3_text": (
        lambda: Gemma3TextConfig(
            **THREE, head_dim=16, sliding_window=8, layer_types=MIXED, query_pre_attn_scalar=20, attention_type="lucid"
        ),
        (0, 2),
    ),
    "lucid qwen3": (
        lambda: Qwen3Config(**THREE, head_dim=12, attention_type="lucid", lucid_layers=[1]),
        (1,),
    ),
}
LUCID["lucid qwen3_next"] = (
    lambda: Qwen3NextConfig(**HYBRID, num_experts=0, attention_type="lucid", lucid_layers=[2]),
    (2,),
)


def make(name: str, path: Path) -> Any:
    """Write a checkpoint, and return transformers' float64 model."""
    if name == BASELINE:
        model = baseline()
        model.save_pretrained(path)
        model.set_attn_implementation("normed_after_rotation")
        return model
    given, solved = LUCID.get(name) or (MODELS[name], ())
    model = random_model(given())
    with torch.no_grad():
        for index in solved:
            model.model.layers[index].self_attn.k_proj.weight.add_(0.5)  # and keys point one way
    model.save_pretrained(path)
    if solved:
        model.config.solved = solved
        model.set_attn_implementation("lucid_dense")
    return model


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens), use_cache=False).logits.double().numpy()


@pytest.mark.parametrize("name", [*MODELS, *LUCID, BASELINE])
def test_a_family_is_transformers_own_in_float64(name: str, tmp_path: Path) -> None:
    model = make(name, tmp_path)
    with float64_throughout(model):
        exact = logits_of(model, token_ids())
    # Rotary angles are float32 whatever the model's type: about as near as transformers' own float32 is, or nearer.
    gate = min(2 * relative_error(logits_of(model.float(), token_ids()), exact), GATE)
    check_sequences(TorchSession(load_model(tmp_path, torch.float64)), exact, gate)


def test_a_ring_that_rounds_errs_by_its_rounding(tmp_path: Path) -> None:
    """Cached rows are rounded and new ones are not: what one-shot prefill gives is exact, decoding is near it."""
    exact = logits_of(make("mistral", tmp_path), token_ids())
    session = TorchSession(load_model(tmp_path, torch.float64).store_cache_as("int8"))
    check_sequences(session, exact, 0.2)
