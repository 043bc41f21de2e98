"""Models as their authors' code computes them, in transformers' classes: they share nothing with the product."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama import modeling_llama

from examples.dump_golden import dump_golden


def lucid_model(checkpoint: Path, diagonal: str = "one") -> Any:
    """LUCID attention over the whole sequence in Llama's class, in float64.

    Args:
        checkpoint: Of one or more LUCID layers with rotary positions.
        diagonal: ``one``, or ``training``: each row is divided by its L_ii, which eps makes less than 1.
    """

    def attention(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        n, d, groups = key.shape[2], key.shape[3], query.shape[1] // key.shape[1]
        k_hat = key / torch.sqrt((key * key).mean(-1, keepdim=True) + module.config.rms_norm_eps)
        system = torch.tril(torch.exp(k_hat @ k_hat.mT / math.sqrt(d) - math.sqrt(d)))
        if diagonal == "one":
            system = torch.tril(system, -1) + torch.eye(n, dtype=key.dtype)
        y = torch.linalg.solve_triangular(system, value, upper=False)
        module.recorded = (key, y)
        scores = query @ key.repeat_interleave(groups, 1).mT / math.sqrt(d)
        scores = scores.masked_fill(torch.triu(torch.ones(n, n, dtype=torch.bool), 1), float("-inf"))
        return (scores.softmax(-1) @ y.repeat_interleave(groups, 1)).transpose(1, 2).contiguous(), None

    name = f"recorded_lucid_{diagonal}"
    modeling_llama.ALL_ATTENTION_FUNCTIONS[name] = attention
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float64).eval()
    model.set_attn_implementation(name)
    return model


def record_lucid(checkpoint: Path, path: Path, diagonal: str = "one", **options: Any) -> Path:
    """Write a golden file of :func:`lucid_model`, K and Y of every layer included."""
    model = lucid_model(checkpoint, diagonal)

    def layers() -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        return {index: layer.self_attn.recorded for index, layer in enumerate(model.model.layers)}

    dump_golden(model, path, layers=layers, **options)
    return path
