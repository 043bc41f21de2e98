"""Phi-3's configuration as transformers reads it, and its fused tensors as transformers' class has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lucid_deploy.model.checkpoint import expected_shapes
from lucid_deploy.model.families import family_named
from tests.model.config_samples import refusal
from tests.model.families.both_models import FULL, THREE, difference, theirs, tokens, write_theirs
from tests.model.families.read_both import read_both


@pytest.mark.parametrize("given", [{}, {"sliding_window": 11}, {"num_key_value_heads": 4, "sliding_window": None}])
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    ours, _ = read_both("phi3", **given)
    assert not (ours.attention_bias or ours.mlp_bias)


def test_a_list_of_full_layers_that_its_code_passes_over_does_not_remove_windows(tmp_path: Path) -> None:
    raw = {**THREE, "model_type": "phi3", "sliding_window": 9}
    listed = {**raw, "layer_types": [FULL] * 3}
    plain, same, full = (
        theirs(write_theirs(given, tmp_path / name), tokens(60))
        for name, given in (("plain", raw), ("listed", listed), ("full", {**listed, "sliding_window": None}))
    )
    assert (plain == same).all()
    assert abs(plain - full).max() > 0.1 * abs(plain).max()
    assert "layer_types names layer 0 full_attention, and the code of phi3" in refusal(listed)
    assert difference({**listed, "sliding_window": None}, tmp_path / "no window") < 1e-5


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
