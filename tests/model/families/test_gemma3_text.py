"""Gemma 3's configuration as transformers reads it, and where its norms lie."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lucid_deploy.model.block import SandwichLayer
from lucid_deploy.model.checkpoint import expected_shapes
from lucid_deploy.model.families import family_named
from tests.model.config_samples import GEMMA, refusal
from tests.model.families.both_models import THREE, difference, theirs, tokens, write_theirs
from tests.model.families.read_both import FULL, SLIDING, read_both

LOCAL = {"rope_type": "default", "rope_theta": 1e3}
GLOBAL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5}


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"sliding_window_pattern": 3, "sliding_window": 9, "head_dim": 16},
        {"layer_types": [FULL, SLIDING, FULL, FULL, FULL, SLIDING], "sliding_window": 9},
        {"rope_parameters": {FULL: GLOBAL, SLIDING: LOCAL}, "query_pre_attn_scalar": 20},
    ],
    ids=["nothing given", "pattern", "listed", "two bases"],
)
def test_its_settings_are_transformers(given: dict[str, Any]) -> None:
    ours, theirs = read_both("gemma3_text", **given)
    assert ours.attention_scale == theirs.query_pre_attn_scalar**-0.5
    assert ours.embedding_multiplier == math.sqrt(theirs.hidden_size)
    assert (ours.qk_norm, ours.attention_bias) == ("before_rope", theirs.attention_bias)


def test_all_norms_and_nothing_else_scale_by_one_more_than_is_stored() -> None:
    ours, _ = read_both("gemma3_text")
    shapes = expected_shapes(ours)
    norms = {name for name in shapes if family_named("gemma3_text").stored(name, ours).plus == 1}
    assert norms == {name for name, shape in shapes.items() if len(shape) == 1}
    assert len(norms) == 6 * 6 + 1
    with torch.device("meta"):
        layer = family_named("gemma3_text").layer(ours, 0, "blocked")
    assert isinstance(layer, SandwichLayer)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rope_parameters": {FULL: GLOBAL, SLIDING: GLOBAL}}, "which is not supported for layers over a window"),
        ({"rope_parameters": {FULL: GLOBAL, "other": LOCAL}}, "which is not supported for layers over a window"),
        ({"rope_parameters": {SLIDING: {"rope_type": "yarn"}}}, "rope_type 'yarn' of layers over a window"),
        ({"mlp_bias": True}, "mlp_bias is True. Gemma's code makes no biases in its MLPs"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be a positive number"),
    ],
)
def test_what_it_does_not_compute_is_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal(GEMMA, **given)


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
NESTED = {**THREE, "model_type": "gemma3_text", "head_dim": 24, "sliding_window_pattern": 2}
BLOCKS = {"rope_scaling": lambda block: block, "rope_parameters": lambda block: {FULL: block}}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(
    "setting",
    [
        {"attention_factor": 1.3},
        {"beta_fast": 8.0, "beta_slow": 2.0},
        {"mscale": 0.7, "mscale_all_dim": 0.8},
        {"rope_theta": 500.0, "truncate": True},
    ],
    ids=str,
)
def test_settings_of_yarn_in_the_block_of_full_layers_are_transformers(
    name: str, setting: dict[str, Any], tmp_path: Path
) -> None:
    assert difference({**NESTED, name: BLOCKS[name]({**YARN, **setting})}, tmp_path) < 1e-5


@pytest.mark.parametrize("name", BLOCKS)
def test_a_ramp_that_transformers_rounds_all_the_same_is_refused(name: str, tmp_path: Path) -> None:
    rounded, same = (
        theirs(write_theirs({**NESTED, name: BLOCKS[name](block)}, tmp_path / "one"), tokens(60))
        for block in (YARN, {**YARN, "truncate": False})
    )
    assert (rounded == same).all()
    said = refusal(NESTED, **{name: BLOCKS[name]({**YARN, "truncate": False})})
    assert "truncate is False, which transformers' Gemma 3 passes over" in said
