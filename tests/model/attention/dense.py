"""Attention as it stands on paper, in NumPy: shares nothing with the product."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from lucid_deploy.model.attention.grouped_query import GroupedQueryAttention
from lucid_deploy.model.layers import layer_kind
from tests.model.config_samples import LLAMA, parse


def make(kind: str, **changes: object) -> GroupedQueryAttention:
    """Return the attention of a layer, float64 and random, without rotary positions."""
    torch.manual_seed(0)
    config = parse(LLAMA, head_dim=12, attention_type="lucid", use_rope=False)
    config = dataclasses.replace(config, **changes)  # type: ignore[arg-type]
    mixer = layer_kind(kind).mixer(config, 0, "blocked").double().requires_grad_(False)
    assert isinstance(mixer, GroupedQueryAttention)
    mixer.k_proj.weight.mul_(3)
    return mixer


def tokens(count: int = 23) -> Tensor:
    """Return hidden states ``(1, N, C)`` of tokens whose keys correlate; some are the same token again."""
    generator = torch.Generator().manual_seed(3)
    x = 0.3 * torch.randn(1, count, 48, generator=generator).double() + torch.randn(48, generator=generator).double()
    x[:, count // 2 : count // 2 + 4] = x[:, 1:2]
    return x


def attend(mixer: GroupedQueryAttention, x: Tensor, solve: bool = False, window: int | None = None) -> np.ndarray:
    """Return what attention gives for one sequence ``(1, N, C)``: ``(N, C)``."""
    d, n = mixer.config.head_dim, x.shape[1]
    q, k, v = (
        (x[0] @ part.weight.T).numpy().reshape(n, -1, d).transpose(1, 0, 2)
        for part in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    heads = []
    for head, queries in enumerate(q):
        key, value = (rows[head * len(k) // len(q)] for rows in (k, v))
        if solve:
            value = solved(key, value, mixer.config.rms_norm_eps)
        scores = queries @ key.T / math.sqrt(d)
        age = np.arange(n)[:, None] - np.arange(n)
        scores[(age < 0) | (age >= (window or n))] = -np.inf
        weights = np.exp(scores - scores.max(1, keepdims=True))
        heads.append(weights / weights.sum(1, keepdims=True) @ value)
    return np.concatenate(heads, axis=1) @ mixer.o_proj.weight.T.numpy()


def solved(key: np.ndarray, value: np.ndarray, eps: float) -> np.ndarray:
    """Return Y of one head, a row at a time."""
    normed, d = key / np.sqrt((key * key).mean(1, keepdims=True) + eps), key.shape[1]
    y = value.copy()
    for i in range(1, len(y)):
        y[i] -= np.exp(normed[i] @ normed[:i].T / math.sqrt(d) - math.sqrt(d)) @ y[:i]
    return y
