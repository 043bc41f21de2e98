"""What the layers of a call are given."""

from __future__ import annotations

import torch

from lucid_deploy.model.rope import rope_tables
from lucid_deploy.model.rope_settings import Rope
from lucid_deploy.model.steps import layer_steps
from tests.model.config_samples import GEMMA, LLAMA, LUCID, parse

POSITIONS = torch.tensor([[0, 1, 7]])
MIXED = ["full_attention", "sliding_attention", "full_attention"]


def wanted(rope: Rope | None, width: int) -> torch.Tensor:
    assert rope is not None
    return rope_tables(rope, width, POSITIONS, torch.float32)[0]


def test_layers_over_a_window_rotate_by_a_base_of_their_own() -> None:
    config = parse(GEMMA, num_hidden_layers=3, layer_types=MIXED, sliding_window=5, rope_local_base_freq=100.0)
    steps = layer_steps(config, POSITIONS, torch.float32)
    cosines = [step.rope[0] for step in steps if step.rope is not None]
    assert len(steps) == len(cosines) == 3
    for index, cosine in enumerate(cosines):
        assert torch.equal(cosine, wanted(config.rope(index), config.head_dim))
    assert cosines[0] is cosines[2], "tables are made once"
    assert not torch.equal(cosines[0], cosines[1])
    assert all(step.made is steps[0].made for step in steps), "what one layer makes, those behind it find"


def test_layers_without_positions_have_no_tables() -> None:
    config = parse({**LLAMA, "model_type": "smollm3"}, num_hidden_layers=3, no_rope_layers=[1, 0, 1])
    assert [step.rope is None for step in layer_steps(config, POSITIONS, torch.float32)] == [False, True, False]
    assert layer_steps(parse(LUCID, use_rope=False), None, torch.float32)[0].rope is None


def test_all_else_is_the_same_for_each() -> None:
    mask, length = torch.ones(1, 4, dtype=torch.bool), torch.tensor([3])
    for step in layer_steps(parse(), POSITIONS, torch.float32, mask, True, length):
        assert step.mask is mask and step.cache_length is length and step.decode
