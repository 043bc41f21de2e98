"""Granite's configuration, as transformers reads it."""

from __future__ import annotations

import pytest

from tests.model.config_samples import LLAMA, refusal
from tests.model.families.read_both import read_both

MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0078,
    "logits_scaling": 16.0,
}


def test_without_multipliers_it_scales_nothing_but_scores() -> None:
    """Where attention_multiplier is left out it is 1, and not 1/√d."""
    ours, theirs = read_both("granite")
    assert (ours.embedding_multiplier, ours.residual_multiplier, ours.logits_divisor) == (1, 1, 1)
    assert ours.attention_scale == theirs.attention_multiplier == 1


def test_multipliers_are_transformers() -> None:
    ours, theirs = read_both("granite", **MULTIPLIERS, num_key_value_heads=4, attention_bias=True, mlp_bias=True)
    assert (ours.embedding_multiplier, ours.residual_multiplier) == (
        theirs.embedding_multiplier,
        theirs.residual_multiplier,
    )
    assert (ours.attention_scale, ours.logits_divisor) == (theirs.attention_multiplier, theirs.logits_scaling)
    assert (ours.attention_bias, ours.mlp_bias) == (theirs.attention_bias, theirs.mlp_bias) == (True, True)


@pytest.mark.parametrize("key", MULTIPLIERS)
def test_a_multiplier_is_a_positive_number(key: str) -> None:
    granite = {**LLAMA, "model_type": "granite"}
    assert f"{key} must be a positive number, not 0" in refusal(granite, **{key: 0})
    assert f"{key} must be a positive number, not True" in refusal(granite, **{key: True})
