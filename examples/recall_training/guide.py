"""Supervision of two attention heads, which makes the lookup quick to find."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from lucid_deploy.model.lucid import LucidForCausalLM
from lucid_deploy.model.rope import rotate
from recall_training.data import Batch


class Guide:
    """Attention supervision: shows the second layer's first head of each group which token holds the next word.

    The loss on answers alone finds the lookup after very many steps, this one after a hundred. Its weight falls to zero
    half way through training; from there the answers alone count.
    """

    def __init__(self, model: LucidForCausalLM) -> None:
        self.config = model.config
        self.positions = self.sources = torch.empty(0, dtype=torch.int64)
        self.loss = torch.zeros(())
        self.hook = model.model.layers[1].self_attn.register_forward_pre_hook(self._score)

    def aim(self, batch: Batch) -> None:
        """Set which tokens of the next forward pass are supervised, and which tokens they have to attend to."""
        self.positions, self.sources = batch.positions, batch.sources

    def remove(self) -> None:
        """Leave the model as it was."""
        self.hook.remove()

    def _score(self, attention: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled():
            return  # held-out prompts are being answered: nothing to teach
        x, step = inputs[:2]
        cos, sin = step.rope
        config, at = self.config, self.positions
        q = attention.q_proj(x[:, at]).unflatten(2, (-1, config.head_dim)).transpose(1, 2)  # (B, H, A, D)
        k = attention.k_proj(x).unflatten(2, (-1, config.head_dim)).transpose(1, 2)  # (B, KV, N, D)
        q = rotate(
            q[:, :: config.num_attention_heads // config.num_key_value_heads], cos[:, :, at], sin[:, :, at]
        )  # (B, KV, A, D)
        scores = q @ rotate(k, cos, sin).mT / math.sqrt(config.head_dim)  # (B, KV, A, N)
        scores = scores.masked_fill(torch.arange(x.shape[1]) > at[:, None], -1e9)
        wanted = self.sources[:, None].expand(scores.shape[:3])
        self.loss = F.cross_entropy(scores.flatten(0, 2), wanted.flatten())
