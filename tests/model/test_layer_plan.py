"""Which layers are LUCID, which standard and which over a window."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.model.config import LucidConfig
from tests.model.config_samples import LUCID, parse, refusal

LAYERS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 5}


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        (LAYERS, ("window", "lucid")),
        ({"lucid_layers": [1]}, ("standard", "lucid")),
        ({**LAYERS, "lucid_layers": [1]}, ("window", "lucid")),
        ({"lucid_layers": None}, ("lucid", "lucid")),
        ({"lucid_layers": [1, 0]}, ("lucid", "lucid")),
    ],
)
def test_layers_are_named_in_two_ways(changes: dict[str, Any], kinds: tuple[str, ...]) -> None:
    config = parse(LUCID, **changes)
    assert config.kinds == kinds
    assert config.sliding_window == (5 if "window" in kinds else None)
    assert LucidConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({**LAYERS, "layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers is 2"),
        ({**LAYERS, "layer_types": ["full_attention", "linear"]}, "layer_types names 'linear', which is not supported"),
        ({**LAYERS, "sliding_window": None}, "sliding_window does not say over how many tokens"),
        ({**LAYERS, "use_sliding_window": False}, "names sliding_attention, and use_sliding_window is false. Remove"),
        ({**LAYERS, "sliding_window": 0}, "`$.sliding_window`"),
        ({**LAYERS, "sliding_window": True}, "`$.sliding_window`"),
        (
            {**LAYERS, "layer_types": ["sliding_attention"] * 2},
            "all layers attend over a window, so that none is",
        ),
        ({**LAYERS, "layer_types": "full_attention"}, "`$.layer_types`"),
        ({**LAYERS, "lucid_layers": [0]}, "lucid_layers names layer 0, which attends over a window"),
        ({"lucid_layers": [2]}, "lucid_layers names layer 2; it lists layers, counted from 0, of 2"),
        ({"lucid_layers": [1, 1]}, "lucid_layers names a layer twice"),
        ({"lucid_layers": []}, "lucid_layers names no layer"),
        ({"lucid_layers": [-1]}, "`$.lucid_layers[0]`"),
        ({"lucid_layers": 1}, "`$.lucid_layers`"),
        ({"sliding_window": 5}, "sliding_window is 5, which changes"),
        ({"lucid_layers": [1], "layer_kinds": ["lucid", "lucid"]}, "layer_kinds cannot be combined with"),
        ({"attention_type": "llama", "lucid_layers": [1]}, "lucid_layers is [1], which changes"),
    ],
)
def test_layers_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(LUCID, **changes)
