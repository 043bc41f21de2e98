"""Qwen2's configuration, as transformers reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.model.config_samples import LLAMA, parse, refusal
from tests.model.families.both_models import THREE, difference, theirs, tokens, write_theirs
from tests.model.families.read_both import FULL, SLIDING, read_both

QWEN2 = {**LLAMA, "model_type": "qwen2"}
WINDOW = {"use_sliding_window": True, "sliding_window": 7}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_key_value_heads": 8, "tie_word_embeddings": True},
        {"sliding_window": 7},
        {"use_sliding_window": True, "max_window_layers": 2},
        {**WINDOW, "max_window_layers": 2},
        {**WINDOW, "max_window_layers": 0},
        {**WINDOW, "max_window_layers": 6},
        {**WINDOW, "layer_types": [FULL, SLIDING, FULL, FULL, FULL, SLIDING]},
    ],
    ids=str,
)
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    ours, _ = read_both("qwen2", **given)
    assert ours.attention_bias and not ours.has_output_bias and not ours.mlp_bias


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_biases_that_its_code_does_not_ask_for_are_refused(key: str) -> None:
    assert f"{key} is True. Qwen2's code makes biases of q, k and v and no others" in refusal(QWEN2, **{key: True})
    assert parse(QWEN2, **{key: False}) == parse(QWEN2)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    "given", [{}, {"sliding_window": 9}, {"sliding_window": 9, "use_sliding_window": False}], ids=str
)
def test_listed_windows_that_are_switched_off_are_refused_as_transformers_does(
    given: dict[str, Any], family: str, tmp_path: Path
) -> None:
    raw = {**THREE, "model_type": family, "layer_types": [SLIDING, FULL, SLIDING], **given}
    with pytest.raises(ValueError, match="Could not find a `sliding_window`"):
        theirs(write_theirs(raw, tmp_path), tokens(9))
    assert "layer_types names sliding_attention, and use_sliding_window is not true" in refusal(raw)
    on = {**raw, "use_sliding_window": True, "sliding_window": 9}
    assert difference(on, tmp_path / "on") < 1e-5
