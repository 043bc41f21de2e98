"""Mistral's configuration, as transformers reads it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.model.config_samples import LLAMA, parse, refusal
from tests.model.families.read_both import read_both

MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": None}


def test_mistral_without_a_window_is_taken_with_its_own_defaults() -> None:
    bare = {
        key: value for key, value in MISTRAL.items() if key not in ("max_position_embeddings", "num_key_value_heads")
    }
    config = parse(bare, num_attention_heads=8)
    assert (config.max_position_embeddings, config.num_key_value_heads) == (131072, 8)
    assert parse(MISTRAL) == dataclasses.replace(parse(), family="mistral")


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"mlp_bias": True}])
def test_biases_that_mistral_does_not_make_are_refused(changes: dict[str, Any]) -> None:
    assert f"{next(iter(changes))} is True. Mistral's code makes no biases" in refusal(MISTRAL, **changes)


@pytest.mark.parametrize("changes", [{}, {"use_sliding_window": False, "sliding_window": 4096}])
def test_a_window_that_mistral_leaves_out_is_not_none(changes: dict[str, Any]) -> None:
    """Its code asks for sliding_window and nothing else."""
    bare = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    config = parse(bare, **changes)
    assert (config.kinds, config.sliding_window) == (("window", "window"), 4096)


@pytest.mark.parametrize("given", [{}, {"sliding_window": None}, {"sliding_window": 9, "head_dim": 24}], ids=str)
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    ours, _ = read_both("mistral", **given)
    assert not (ours.attention_bias or ours.mlp_bias)


@pytest.mark.parametrize("sliding_window", [9, None])
def test_a_list_of_full_layers_beside_windows_is_refused(sliding_window: int | None) -> None:
    listed = {"layer_types": ["full_attention"] * 2, "sliding_window": sliding_window}
    if sliding_window is None:
        assert parse(MISTRAL, **listed) == parse(MISTRAL)
    else:
        said = refusal(MISTRAL, **listed)
        assert "layer_types names layer 0 full_attention, and the code of mistral" in said
        assert said.endswith(
            "If the model was trained with windows, remove layer_types; if not, set sliding_window to null."
        )
