"""A configuration as this toolkit reads it and as transformers' own class of the family does."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig

from lucid_deploy.model.config import LucidConfig
from lucid_deploy.model.config_parsing import parse_config

# 32 heads, since that is how many key/value heads some families have where none are named.
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 128,
    "intermediate_size": 112,
    "num_hidden_layers": 6,
    "num_attention_heads": 32,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FULL, SLIDING = "full_attention", "sliding_attention"


def read_both(family: str, **given: Any) -> tuple[LucidConfig, Any]:
    """Return both, after checking that they agree on what all families have.

    What transformers writes of its own must mean the same as what was left out.
    """
    ours = parse_config({"model_type": family, **SIZES, **given}, "config.json")
    theirs = CONFIG_MAPPING[family](**SIZES, **given)
    _check_alike(ours, theirs)
    written = parse_config(json.loads(theirs.to_json_string(use_diff=False)), "config.json")
    if len(set(ours.kinds)) == 1 and ours.kinds[0] == "standard":  # then no key of windows says anything
        ours, written = (dataclasses.replace(config, layer_kinds=()) for config in (ours, written))
    assert written == ours
    return ours, theirs


def _check_alike(ours: LucidConfig, theirs: PreTrainedConfig) -> None:
    names = ("num_key_value_heads", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings")
    assert {name: getattr(ours, name) for name in names} == {name: getattr(theirs, name) for name in names}
    width = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.family, ours.head_dim) == (theirs.model_type, width)
    assert ours.hidden_act == (getattr(theirs, "hidden_act", None) or theirs.hidden_activation)
    types = layer_types(theirs)
    assert ours.kinds == tuple("window" if kind == SLIDING else "standard" for kind in types)
    assert ours.sliding_window == (theirs.sliding_window if SLIDING in types else None)
    for index, kind in enumerate(types):
        rope, block = ours.rope(index), theirs.rope_parameters.get(kind, theirs.rope_parameters)
        if rope is not None:
            assert (rope.theta, rope.scaling.rope_type) == (block["rope_theta"], block["rope_type"])


def layer_types(theirs: PreTrainedConfig) -> list[str]:
    """Return the type of each layer; where the class has none, all are as ``sliding_window`` says."""
    if getattr(theirs, "layer_types", None):
        return list(theirs.layer_types)
    return [SLIDING if getattr(theirs, "sliding_window", None) else FULL] * theirs.num_hidden_layers
