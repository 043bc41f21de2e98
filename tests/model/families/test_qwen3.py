"""Qwen3's configuration, as transformers reads it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model.config_samples import LLAMA, refusal
from tests.model.families.read_both import FULL, SLIDING, read_both


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"head_dim": 20, "num_key_value_heads": 1},
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 3},
        {"use_sliding_window": True, "sliding_window": 7, "layer_types": [SLIDING, FULL] * 3},
    ],
    ids=str,
)
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    ours, _ = read_both("qwen3", **given)
    assert (ours.qk_norm, ours.attention_bias) == ("before_rope", False)


def test_biases_are_those_of_attention() -> None:
    ours, theirs = read_both("qwen3", attention_bias=True)
    assert ours.attention_bias == ours.has_output_bias == theirs.attention_bias is True
    assert "mlp_bias is True. Qwen3's code makes no biases" in refusal({**LLAMA, "model_type": "qwen3"}, mlp_bias=True)
