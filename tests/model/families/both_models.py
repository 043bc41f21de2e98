"""A random checkpoint as transformers' own class computes it from ``config.json``, and as this toolkit does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.model.config_samples import LLAMA

FULL, SLIDING = "full_attention", "sliding_attention"
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 128,
    "intermediate_size": 112,
    "num_hidden_layers": 6,
    "num_attention_heads": 32,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
THREE = {**LLAMA, "num_hidden_layers": 3, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def tokens(length: int) -> np.ndarray:
    """Two rows of token ids; in the second one, one token is repeated."""
    ids = np.random.default_rng(0).integers(0, LLAMA["vocab_size"], (2, length))
    ids[1, length // 8 : 3 * length // 4] = 7
    return ids


def write_theirs(raw: dict[str, Any], path: Path) -> Any:
    """Write a checkpoint with this ``config.json``, and return transformers' float64 model of it with eager attention.

    Weights are large enough that every part of the model matters, and the embeddings share a direction.
    """
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(path)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=0.25)
            else:
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.model.embed_tokens.weight.add_(0.25 * torch.randn(config.hidden_size))
    stored = {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        stored.pop("lm_head.weight", None)
    save_file(stored, path / "model.safetensors", metadata={"format": "pt"})
    return model


def theirs(model: Any, ids: np.ndarray) -> np.ndarray:
    """The logits of the last token, by transformers."""
    with torch.no_grad():
        return model(torch.from_numpy(ids), use_cache=False).logits[:, -1].double().numpy()


def ours(path: Path, ids: np.ndarray) -> np.ndarray:
    """The logits of the last token, by this toolkit's PyTorch model in float64."""
    session = TorchSession(load_model(path, torch.float64))
    return session.prefill(ids, session.empty_cache(len(ids)))[:, -1]


def difference(raw: dict[str, Any], path: Path, length: int = 60) -> float:
    """The largest difference of the logits, relative to the largest of transformers'."""
    model, ids = write_theirs(raw, path), tokens(length)
    wanted = theirs(model, ids)
    return float(np.abs(ours(path, ids) - wanted).max() / np.abs(wanted).max())
