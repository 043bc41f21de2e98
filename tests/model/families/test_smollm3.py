"""SmolLM3's configuration, as transformers reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.model.config_samples import LLAMA, parse, refusal
from tests.model.families.both_models import THREE, difference, theirs, tokens, write_theirs
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
        {"no_rope_layers": [1, 0, 0, 1, 1, 0, 1, 0]},
        WINDOW,
        {**WINDOW, "no_rope_layers": [0, 1, 1, 1, 1, 0]},
        {**WINDOW, "layer_types": [SLIDING, FULL, FULL, FULL, FULL, FULL]},
    ],
    ids=str,
)
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    ours, theirs = read_both("smollm3", **given)
    rotated = [ours.rope(index) is not None for index in range(ours.num_hidden_layers)]
    assert rotated == [value == 1 for value in theirs.no_rope_layers[: len(rotated)]]


LISTED = {"model_type": "smollm3", "sliding_window": 9, "layer_types": [SLIDING, FULL, SLIDING]}


def test_listed_windows_are_transformers_where_the_switch_is_on(tmp_path: Path) -> None:
    assert difference({**THREE, **LISTED, "use_sliding_window": True}, tmp_path) < 1e-5


@pytest.mark.parametrize("switch", [{}, {"use_sliding_window": False}])
def test_listed_windows_that_transformers_implementations_see_differently_are_refused(
    switch: dict[str, Any], tmp_path: Path
) -> None:
    raw = {**THREE, **LISTED, **switch}
    model, ids = write_theirs(raw, tmp_path), tokens(60)
    eager = theirs(model, ids)
    model.set_attn_implementation("sdpa")
    # Eager attention takes its softmax in float32 whatever the model's type.
    np.testing.assert_allclose(theirs(model, ids), eager, rtol=0, atol=1e-5 * np.abs(eager).max())
    # Flash attention has no mask but this attribute.
    assert [layer.self_attn.sliding_window for layer in model.model.layers] == [None, None, None]
    model.config.layer_types = [FULL] * 3
    assert np.abs(theirs(model, ids) - eager).max() > 0.1 * np.abs(eager).max()
    assert "layer_types names sliding_attention, and use_sliding_window is not true" in refusal(raw)
    assert parse(raw, layer_types=[FULL] * 3).kinds == ("standard",) * 3


def test_listed_windows_of_no_size_are_refused_as_transformers_does(tmp_path: Path) -> None:
    raw = {**THREE, **LISTED, "use_sliding_window": True, "sliding_window": None}
    with pytest.raises(ValueError, match="Could not find a `sliding_window`"):
        theirs(write_theirs(raw, tmp_path), tokens(9))
    assert "sliding_window does not say over how many tokens" in refusal(raw)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"no_rope_layers": [1]}, "no_rope_layers names 1 layers, num_hidden_layers is 2"),
        ({"no_rope_layers": [1, 2]}, "no_rope_layers must be a list of 0 and 1"),
        ({"no_rope_layers": [True, False]}, "no_rope_layers must be a list of 0 and 1"),
        ({"no_rope_layer_interval": 0}, "no_rope_layer_interval must be a positive whole number"),
    ],
)
def test_switches_that_do_not_fit_are_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal({**LLAMA, "model_type": "smollm3"}, **given)
