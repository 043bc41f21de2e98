"""SmolLM3's configuration, as transformers reads it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.model.config_samples import LLAMA, refusal
from tests.model.families.read_both import FULL, SLIDING, read_both

WINDOW = {"use_sliding_window": True, "sliding_window": 7}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"no_rope_layer_interval": 3},
        {"no_rope_layer_interval": 1},
        {"no_rope_layer_interval": 7},
        {"no_rope_layers": [1, 0, 0, 1, 1, 0], "tie_word_embeddings": False},
        WINDOW,
        {**WINDOW, "no_rope_layers": [0, 1, 1, 1, 1, 0]},
        {**WINDOW, "layer_types": [SLIDING, FULL, FULL, FULL, FULL, FULL]},
    ],
    ids=str,
)
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    ours, theirs = read_both("smollm3", **given)
    rotated = [ours.rope(index) is not None for index in range(ours.num_hidden_layers)]
    assert rotated == [value == 1 for value in theirs.no_rope_layers]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"no_rope_layers": [1, 0, 1]}, "no_rope_layers names 3 layers, num_hidden_layers is 2"),
        ({"no_rope_layers": [1, 2]}, "no_rope_layers must be a list of 0 and 1"),
        ({"no_rope_layers": [True, False]}, "no_rope_layers must be a list of 0 and 1"),
        ({"no_rope_layer_interval": 0}, "no_rope_layer_interval must be a positive whole number"),
    ],
)
def test_switches_that_do_not_fit_are_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal({**LLAMA, "model_type": "smollm3"}, **given)
