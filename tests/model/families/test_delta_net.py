"""DeltaNet's keys. What it computes is compared in ``test_flash_linear.py``."""

from __future__ import annotations

from typing import Any

import pytest

from lucid_deploy.model.families.flash_linear import FlashKeys
from tests.model.config_samples import parse, refusal
from tests.model.families.flash_model import SMALL

PLAIN = {**SMALL, "model_type": "delta_net"}


def test_widths_follow_from_the_hidden_width() -> None:
    config = parse({**PLAIN, "expand_k": 0.5, "expand_v": 1.5, "use_short_conv": False})
    assert config.kinds == ("delta",) * 3 and not config.use_rope
    assert config.layer_settings["delta"] == {
        "key_heads": 4,
        "value_heads": 4,
        "key_width": 6,
        "value_width": 18,
        "kernel": 0,
        "gate": "none",
        "has_beta": True,
        "negative_eigenvalues": False,
    }


def test_what_flash_linear_attention_writes_of_its_own_is_taken() -> None:
    written = {
        "attn_mode": "chunk",
        "fuse_norm": True,
        "fuse_swiglu": True,
        "fuse_cross_entropy": True,
        "fuse_linear_cross_entropy": False,
        "use_l2warp": False,
        "use_output_norm": True,
        "attnres_block_size": None,
        "attn": None,
        "hidden_act": "swish",
        "qk_norm": "l2",
        "qk_activation": "silu",
        "use_beta": True,
        "architectures": ["DeltaNetForCausalLM"],
    }
    assert parse({**PLAIN, **written}) == parse(PLAIN)
    assert FlashKeys(num_heads=4).conv_size == 4


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"qk_norm": "sum"}, "qk_norm 'sum' is not supported; only l2 is"),
        ({"qk_activation": "elu"}, "qk_activation 'elu' is not supported; only silu is"),
        ({"num_heads": 5}, "hidden_size · expand_k (48) is not a multiple of num_heads (5)"),
        ({"expand_v": 0.3}, "hidden_size · expand_v is 14.4, which is not a whole number"),
        ({"num_heads": None}, "num_heads is missing"),
        ({"use_beta": 3}, "use_beta must be true or false, not 3"),
    ],
)
def test_what_it_does_not_compute_is_refused(given: dict[str, Any], said: str) -> None:
    assert said in refusal(PLAIN, **given)
