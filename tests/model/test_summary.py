"""A model in one line."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.model.config import LucidConfig, parse_config
from lucid_deploy.model.description import LayerDescription, summarize
from lucid_deploy.model.layers import LayerKind, register_layer_kind
from lucid_deploy.model.mixer import Mixer
from tests.model.config_samples import OFFICIAL


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "22 LUCID layers, no rotary positions"),
        ({"num_hidden_layers": 1, "use_rope": True}, "1 LUCID layer, rotary positions (base 10000)"),
        ({"attention_type": "llama", "use_rope": True, "rope_theta": 5e5}, "22 layers of standard attention, rotary "),
        (
            {"use_rope": True, "rope_scaling": {"type": "linear", "factor": 2.5}},
            "22 LUCID layers, rotary positions (base 10000, linear scaling by 2.5)",
        ),
    ],
)
def test_a_model_in_one_line(changes: dict[str, Any], said: str) -> None:
    assert summarize(parse_config({**OFFICIAL, **changes}, "config.json")).startswith(said)


class Gated(LayerKind):
    """A kind that says nothing of itself but its name."""

    name = "gated"

    def describe(self, config: LucidConfig, index: int, cache_dtype: str) -> LayerDescription:
        return LayerDescription(self.name, ())

    def mixer(self, config: LucidConfig, index: int, implementation: str) -> Mixer:
        raise NotImplementedError


def test_layers_of_several_kinds_are_counted() -> None:
    register_layer_kind(Gated())
    kinds = ["lucid", "standard", "gated", "standard"]
    config = parse_config({**OFFICIAL, "num_hidden_layers": 4, "layer_kinds": kinds}, "config.json")
    assert summarize(config).startswith("1 LUCID layer and 2 layers of standard attention and 1 layer of kind gated, ")
