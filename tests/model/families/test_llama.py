"""Llama's configuration, as transformers reads it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import LlamaConfig

from tests.model.config_samples import parse
from tests.model.families.both_models import SIZES


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_key_value_heads": 4, "head_dim": 10, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
        {"attention_bias": True, "mlp_bias": True, "max_position_embeddings": 300},
    ],
    ids=["nothing given", "sizes", "rope", "biases"],
)
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    """What transformers writes of its own must mean the same as what was left out."""
    ours, theirs = parse({"model_type": "llama", **SIZES, **given}), LlamaConfig(**SIZES, **given)
    assert parse(json.loads(theirs.to_json_string(use_diff=False))) == ours
    names = ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "head_dim")
    names = (*names, "attention_bias", "mlp_bias")
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}
    assert ours.attention_output_bias == theirs.attention_bias and ours.kinds == ("standard",) * 6
    rope = ours.rope(0)
    assert rope is not None
    assert (rope.theta, rope.scaling.rope_type) == tuple(
        theirs.rope_parameters[key] for key in ("rope_theta", "rope_type")
    )
