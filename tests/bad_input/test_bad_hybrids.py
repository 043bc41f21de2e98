"""Checkpoints with layers of the delta rule that export must refuse, in one line that names what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.families.flash_model import ATTENTION, Flash

Refused = Callable[..., str]
GATED: dict[str, Any] = {"model_type": "gated_deltanet", "head_dim": 12, "expand_v": 1.0, "num_hidden_layers": 2}
SAVED: dict[str, Any] = {"model_type": "delta_net", "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("model", "change", "said"),
    [
        (SAVED, {"conv_size": 1}, "conv_size is 1; short convolutions over 2 to 64 tokens are supported"),
        (SAVED, {"conv_size": 3}, "q_conv1d.weight is [48, 1, 4], config.json asks for [48, 1, 3]"),
        (SAVED, {"num_heads": 5}, "hidden_size · expand_k (48) is not a multiple of num_heads (5)"),
        (SAVED, {"expand_v": 0.3}, "hidden_size · expand_v is 14.4, which is not a whole number"),
        (SAVED, {"attn": {**ATTENTION, "num_heads": 7}}, "is not a multiple of attn.num_heads (7)"),
        (GATED, {"num_v_heads": 6}, "num_v_heads (6) is not a multiple of num_heads (4)"),
    ],
    ids=str,
)
def test_sizes_that_do_not_divide(
    model: dict[str, Any], change: dict[str, Any], said: str, refused: Refused, tmp_path: Path
) -> None:
    flash = Flash(model)
    flash.raw |= change
    message = refused("export", flash.save(tmp_path / "checkpoint"), "--output", tmp_path / "artifact")
    assert said in " ".join(message.split())


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("v_conv1d.weight", None, "missing: model.layers.1.attn.v_conv1d.weight"),
        ("b_proj.weight", (3, 48), "attn.b_proj.weight is [3, 48], config.json asks for [4, 48]"),
        ("a_proj.weight", (4, 40), "attn.a_proj.weight is [4, 40], config.json asks for [4, 48]"),
        ("A_log", (4, 1), "attn.A_log is [4, 1], config.json asks for [4]"),
        ("dt_bias", (8,), "attn.dt_bias is [8], config.json asks for [4]"),
    ],
)
def test_weights_that_are_missing_or_of_another_shape(
    name: str, shape: tuple[int, ...] | None, said: str, refused: Refused, tmp_path: Path
) -> None:
    flash, full = Flash(GATED), f"model.layers.1.attn.{name}"
    del flash.tensors[full]
    if shape is not None:
        flash.tensors[full] = torch.zeros(shape, dtype=torch.float64)
    message = refused("export", flash.save(tmp_path / "checkpoint"), "--output", tmp_path / "artifact")
    assert said in " ".join(message.split())
