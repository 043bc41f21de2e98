"""Rotary positions: frequencies, tables and rotation are transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

from lucid_deploy.model.config import Rope
from lucid_deploy.model.rope import inverse_frequencies, rope_tables, rotate
from tests.model.config_samples import LLAMA, parse

WIDTH = 12
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
BLOCKS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 5e5},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0},
    "llama3": {"rope_type": "llama3", "rope_theta": 1e3, "factor": 8.0, **LLAMA3},
}
EACH = pytest.mark.parametrize("name", BLOCKS)


def both(name: str) -> tuple[Rope, LlamaRotaryEmbedding]:
    rope = parse(head_dim=WIDTH, rope_parameters=BLOCKS[name]).rope(0)
    assert rope is not None
    return rope, LlamaRotaryEmbedding(LlamaConfig(**LLAMA, head_dim=WIDTH, rope_parameters=dict(BLOCKS[name])))


@EACH
def test_frequencies_are_transformers(name: str) -> None:
    rope, theirs = both(name)
    torch.testing.assert_close(inverse_frequencies(rope, WIDTH), theirs.inv_freq, rtol=1e-6, atol=0)


@EACH
def test_tables_and_rotation_are_transformers(name: str) -> None:
    rope, theirs = both(name)
    torch.manual_seed(0)
    positions = torch.tensor([[0, 1, 5, 90], [3, 4, 5, 6]])
    x = torch.randn(2, 3, 4, WIDTH)
    cos, sin = rope_tables(rope, WIDTH, positions, torch.float32)
    wanted = theirs(x, positions)
    torch.testing.assert_close(torch.cat([cos, cos], -1)[:, 0], wanted[0])
    torch.testing.assert_close(rotate(x, cos, sin), apply_rotary_pos_emb(x, x, *wanted)[0])
