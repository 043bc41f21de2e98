"""Rotary settings: both spellings of transformers, and everything that is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lucid_deploy.model.rope_settings import RopeScaling
from tests.model.config_samples import LLAMA3, parse, refusal

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
    assert f"{key} is missing" in refusal(rope_scaling=block)


@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings"])
def test_a_missing_yarn_setting_is_named(key: str) -> None:
    block = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert parse(rope_scaling=block).rope_scaling.attention_factor == pytest.approx(1 + 0.1 * math.log(4))
    assert f"{key} is missing" in refusal(rope_scaling={name: block[name] for name in block if name != key})


def test_llama3_without_a_ramp_is_refused() -> None:
    assert "low_freq_factor" in refusal(rope_scaling={"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0})
