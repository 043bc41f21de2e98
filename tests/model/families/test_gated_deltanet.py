"""Gated DeltaNet's keys. What it computes is compared in ``test_flash_linear.py``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model.config_samples import parse, refusal
from tests.model.families.flash_model import ATTENTION, SMALL

PLAIN = {**SMALL, "model_type": "gated_deltanet", "head_dim": 6}


def test_heads_of_its_linear_layers_are_not_those_of_its_attention() -> None:
    config = parse({**PLAIN, "num_heads": 5, "num_v_heads": 10, "attn": ATTENTION})
    assert config.kinds == ("gated_delta", "standard", "gated_delta")
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 12)
    settings = config.layer_settings["gated_delta"]
    assert (settings["key_heads"], settings["value_heads"]) == (5, 10)
    assert (settings["key_width"], settings["value_width"], settings["gate"]) == (6, 12, "silu")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_v_heads": 6}, "num_v_heads (6) is not a multiple of num_heads (4)"),
        ({"num_v_heads": 2}, "num_v_heads (2) is not a multiple of num_heads (4)"),
        ({"expand_v": 1.3}, "head_dim · expand_v is 7.8, which is not a whole number"),
        ({"output_gate_activation": "tanh"}, "output_gate_activation 'tanh' is not supported"),
        ({"use_beta": False}, "attention_type is missing, beside use_beta of LUCID's configuration"),
    ],
)
def test_what_it_does_not_compute_is_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal(PLAIN, **given)
