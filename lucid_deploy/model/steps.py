"""What the layers of one call are given: each its own rotary angles, and all else in common."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.mixer import Step
from lucid_deploy.model.rope import rope_tables
from lucid_deploy.model.rope_settings import Rope


def layer_steps(
    config: LucidConfig,
    positions: Tensor | None,
    dtype: torch.dtype,
    mask: Tensor | None = None,
    decode: bool = False,
    cache_length: Tensor | None = None,
) -> list[Step]:
    """Return a step for every layer; layers that rotate by the same angles share their tables, and all what they make.

    Args:
        config: The model.
        positions: Of the new tokens, int64 ``(B, N)``; None only in a model that rotates nothing.
        dtype: Type of the model.
        mask: See :attr:`Step.mask`.
        decode: See :attr:`Step.decode`.
        cache_length: See :attr:`Step.cache_length`.
    """
    ropes = [config.rope(index) for index in range(config.num_hidden_layers)]
    tables: dict[Rope, tuple[Tensor, Tensor]] = {}
    for rope in ropes:
        if rope is not None and rope not in tables:
            assert positions is not None
            tables[rope] = rope_tables(rope, config.rotated, positions, dtype)
    made: dict[Hashable, Any] = {}
    return [Step(mask, decode, None if rope is None else tables[rope], cache_length, made) for rope in ropes]
