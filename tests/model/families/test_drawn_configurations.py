"""Drawn configurations of three families: computed as it does, or refused by name.

What is drawn are the keys that say which layers have windows, how positions are rotated, and the family's own, also
where they contradict each other or belong to another family: each of these was once passed over in silence by one side.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.model.build import parse_model_config
from tests.model.families.both_models import FULL, SLIDING, THREE, ours, theirs, tokens, write_theirs

DRAWN = 10  # of each family
NOT_SAID = object()
SWITCHES: dict[str, tuple[Any, ...]] = {
    "use_sliding_window": (True, False, NOT_SAID),
    "sliding_window": (5, 9, None, NOT_SAID),
    "max_window_layers": (0, 1, NOT_SAID),
    "layer_types": ([FULL] * 3, [SLIDING, FULL, SLIDING], NOT_SAID),
    "tie_word_embeddings": (True, False),
    "attention_bias": (True, NOT_SAID, NOT_SAID),
    "rope_theta": (500.0, NOT_SAID),
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
SCALINGS: tuple[dict[str, Any], ...] = (
    {"rope_type": "linear", "factor": 4.0},
    {"type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 2.0},
    YARN,
    {**YARN, "truncate": False},
    {**YARN, "truncate": None},
    {**YARN, "attention_factor": 1.3, "beta_fast": 8.0},
    {**YARN, "mscale": 0.7, "mscale_all_dim": 0.8, "rope_theta": 300.0},
    {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
)
# Of Qwen's hybrids, small enough for layers to be alike.
LINEAR: dict[str, tuple[Any, ...]] = {
    "use_sliding_window": (False, NOT_SAID),
    "sliding_window": (None, NOT_SAID),
    "layer_types": ([FULL, "linear_attention", FULL], NOT_SAID),
    "head_dim": (2, 16, 24),
    "partial_rotary_factor": (0.5, 1.0, None, NOT_SAID),
    "full_attention_interval": (1, 2, 3),
    "linear_num_key_heads": (1, 2),
    "linear_num_value_heads": (2, 4),
    "linear_key_head_dim": (3, 8),
    "linear_value_head_dim": (5, 8),
    "linear_conv_kernel_dim": (2, 5, NOT_SAID),
}
OWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": {},
    "gemma3_text": {
        "head_dim": (16, 24),
        "sliding_window_pattern": (2, 3, NOT_SAID),
        "query_pre_attn_scalar": (20, NOT_SAID),
        "rope_local_base_freq": (300.0, NOT_SAID),
    },
    "qwen3_next": {**LINEAR, "num_experts": (0, 4), "mlp_only_layers": ([0, 1, 2], NOT_SAID)},
}


def drawn(family: str, number: int) -> dict[str, Any]:
    """A ``config.json``, the same for the same number."""
    draw = random.Random(f"{family} {number}")
    chosen = {name: draw.choice(values) for name, values in {**SWITCHES, **OWN[family]}.items()}
    raw = {**THREE, "model_type": family, **{name: value for name, value in chosen.items() if value is not NOT_SAID}}
    if draw.random() < 0.5:
        scaling = dict(draw.choice(SCALINGS))
        name = draw.choice(("rope_scaling", "rope_parameters"))
        nested = family == "gemma3_text" and name == "rope_parameters"
        raw[name] = {FULL: scaling} if nested else scaling
    return raw


def parsed(raw: dict[str, Any]) -> bool:
    """Whether the configuration is taken; an error other than a refusal is one of ours."""
    try:
        parse_model_config(raw, "config.json")
    except LucidError:
        return False
    return True


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def exact_and_own_error(raw: dict[str, Any], path: Path, ids: list[int]) -> tuple[np.ndarray, float] | None:
    """Their logits in float64 and the error of their float32; None where their class refuses what its key says.

    Norms, angles and softmax are float32 in their classes whatever the model's type, so float64 is no closer than that.
    """
    try:
        model = write_theirs(raw, path)
        exact = theirs(model, ids)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return exact, error(theirs(model.to(torch.float32), ids), exact)


@pytest.mark.parametrize("family", OWN)
def test_a_drawn_configuration_is_computed_as_transformers_does_or_refused(family: str, tmp_path: Path) -> None:
    ids, compared = tokens(40), 0
    for number in range(DRAWN):
        raw, path = drawn(family, number), tmp_path / str(number)
        if not parsed(raw) or (found := exact_and_own_error(raw, path, ids)) is None:
            continue
        exact, own = found
        assert error(ours(path, ids), exact) < 4 * own < 1e-3, raw
        compared += 1
    assert compared >= 3
