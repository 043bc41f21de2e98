"""Llama's configuration, as transformers reads it."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.model.families import family_named
from tests.model.families.read_both import read_both


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_key_value_heads": 4, "head_dim": 10, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
    ],
    ids=["nothing given", "sizes", "rope"],
)
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    ours, theirs = read_both("llama", **given)
    assert (ours.attention_bias, ours.mlp_bias) == (theirs.attention_bias, theirs.mlp_bias) == (False, False)


def test_biases_are_read() -> None:
    ours, theirs = read_both("llama", attention_bias=True, mlp_bias=True)
    assert (ours.attention_bias, ours.has_output_bias, ours.mlp_bias) == (theirs.attention_bias, True, theirs.mlp_bias)


def test_it_has_nothing_of_its_own() -> None:
    """It is what every other family is measured by, and what LUCID's checkpoints are."""
    family = family_named("llama")
    assert (family.computed, dict(family.defaults)) == (frozenset(), {})
    assert family.stored("lm_head.weight", read_both("llama")[0]).name == "lm_head.weight"
