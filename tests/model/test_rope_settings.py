"""Rotary settings: both spellings of transformers, and everything that is refused."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig

from lucid_deploy.errors import LucidError
from lucid_deploy.model.config import RopeScaling
from lucid_deploy.model.config_parsing import parse_config
from lucid_deploy.model.rope import inverse_frequencies
from tests.model.config_samples import LLAMA3, parse, refusal
from tests.model.families.both_models import FULL, SIZES, SLIDING

LINEAR, SCALED = RopeScaling("linear", 4.0), RopeScaling("llama3", *LLAMA3.values())


@pytest.mark.parametrize(
    ("spelling", "theta", "scaling"),
    [
        ({"rope_theta": 5e5}, 5e5, RopeScaling()),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}}, 5e5, LINEAR),
        ({"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}, 5e5, SCALED),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 5e5, RopeScaling()),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 5e5}}, 5e5, LINEAR),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}}, 5e5, SCALED),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": None, "factor": None}}, 10000.0, RopeScaling()),
        ({"rope_theta": 1.0, "rope_parameters": {"rope_theta": 5e5}}, 5e5, RopeScaling()),
    ],
    ids=[
        "4: theta",
        "4: type",
        "4: rope_type",
        "5: default",
        "5: linear",
        "5: llama3",
        "5: nulls",
        "5 beside a stale 4",
    ],
)
def test_rope_settings_of_transformers_4_and_5(spelling: dict[str, Any], theta: float, scaling: RopeScaling) -> None:
    config = parse(**spelling)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)


@pytest.mark.parametrize("key", LLAMA3)
def test_a_missing_llama3_setting_is_named(key: str) -> None:
    block = {"rope_type": "llama3", **{name: value for name, value in LLAMA3.items() if name != key}}
    assert f"{key} is missing, which rope_scaling 'llama3' needs. Add it: " in refusal(rope_scaling=block)


def test_a_ramp_without_width_is_refused() -> None:
    block = {"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}
    assert "low_freq_factor (4.0) must be below high_freq_factor (4.0)" in refusal(rope_scaling=block)


LINEAR_BLOCK = {"rope_type": "linear", "factor": 8.0}
LOCAL = {"rope_type": "default", "rope_theta": 1e3}
# One meaning in many spellings; which of them count differs between classes of transformers.
SPELLINGS: dict[str, dict[str, Any]] = {
    "rope_type": {"rope_scaling": LINEAR_BLOCK},
    "type": {"rope_scaling": {"type": "linear", "factor": 8.0}},
    "type of default": {"rope_scaling": {"type": "default"}},
    "base inside": {"rope_scaling": {**LINEAR_BLOCK, "rope_theta": 5e5}},
    "base outside": {"rope_theta": 3e4, "rope_scaling": LINEAR_BLOCK},
    "llama3 as type": {"rope_scaling": {"type": "llama3", **LLAMA3, "original_max_position_embeddings": 64}},
    "dynamic as type": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
    "parameters": {"rope_parameters": LINEAR_BLOCK},
    "parameters with type": {"rope_parameters": {"type": "linear", "factor": 8.0}},
    "parameters with a base": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
    "parameters without": {"rope_theta": 3e4, "rope_parameters": {"rope_type": "default"}},
    "parameters beside nothing": {"rope_scaling": {}, "rope_parameters": LINEAR_BLOCK},
    "of kinds": {"rope_parameters": {FULL: {**LINEAR_BLOCK, "rope_theta": 5e5}, SLIDING: LOCAL}},
    "of kinds with type": {"rope_parameters": {FULL: {"type": "linear", "factor": 8.0}, SLIDING: LOCAL}},
    "of one kind": {"rope_theta": 3e4, "rope_parameters": {FULL: LINEAR_BLOCK}},
    "of the other kind": {"rope_theta": 3e4, "rope_parameters": {SLIDING: {"rope_type": "default"}}},
}
CLEAR = ["rope_type", "type", "parameters"]


def their_rotation(config: PreTrainedConfig) -> torch.nn.Module:
    """Return what the family's own class in transformers rotates with."""
    module = sys.modules[MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__module__]
    [name] = [name for name in vars(module) if name.endswith("RotaryEmbedding") and "Vision" not in name]
    rotation = getattr(module, name)(config)
    assert isinstance(rotation, torch.nn.Module)
    return rotation


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_spelling_rotates_as_in_transformers_or_is_refused(spelling: str) -> None:
    given = {**SIZES, "max_position_embeddings": 256, **SPELLINGS[spelling]}
    try:
        ours = parse_config({"model_type": "llama", **copy.deepcopy(given)}, "config.json")
    except LucidError:
        assert spelling not in CLEAR
        return
    theirs = CONFIG_MAPPING["llama"](**copy.deepcopy(given))
    rotation = their_rotation(theirs)
    compared = 0
    for index in range(ours.num_hidden_layers):
        if (rope := ours.rope(index)) is None:
            continue
        of = f"{theirs.layer_types[index]}_" if hasattr(rotation, f"{FULL}_inv_freq") else ""
        wanted = getattr(rotation, f"{of}inv_freq")
        found = inverse_frequencies(rope, ours.head_dim)
        torch.testing.assert_close(found, wanted, rtol=2e-6, atol=0.0)  # float32, a few roundings
        compared += 1
    assert compared
