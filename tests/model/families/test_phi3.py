"""Phi-3's configuration as transformers reads it, and its fused tensors as transformers' class has them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lucid_deploy.model.checkpoint import expected_shapes
from lucid_deploy.model.families import family_named
from tests.model.families.read_both import read_both


@pytest.mark.parametrize("given", [{}, {"sliding_window": 11}, {"num_key_value_heads": 4, "sliding_window": None}])
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    ours, _ = read_both("phi3", **given)
    assert not (ours.attention_bias or ours.mlp_bias)


def test_the_parts_of_fused_tensors_cover_each_row_once() -> None:
    ours, theirs = read_both("phi3", num_key_value_heads=4)
    with torch.device("meta"):
        stored = {name: tuple(x.shape) for name, x in AutoModelForCausalLM.from_config(theirs).state_dict().items()}
    rows: dict[str, list[int]] = {}
    for name, shape in expected_shapes(ours).items():
        place = family_named("phi3").stored(name, ours)
        start, end = place.rows or (0, shape[0])
        assert end - start == shape[0] and stored[place.name][1:] == shape[1:] and not place.plus
        rows.setdefault(place.name, []).extend(range(start, end))
    assert rows == {name: list(range(shape[0])) for name, shape in stored.items()}
