"""Places for the scales of inputs: found by what a layer computes, whatever its kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lucid_deploy.export.quantize.folding import Fold, find_folds, storable
from lucid_deploy.export.quantize.inputs import shared_inputs
from lucid_deploy.export.quantize.layer_by_layer import embedded, load_layer, run_layer
from lucid_deploy.model.checkpoint import Checkpoint
from tests.conftest import write_checkpoint
from tests.hybrid_artifact import write_hybrid

MLP = {"mlp.gate_proj": "post_attention_layernorm", "mlp.down_proj": "mlp.up_proj"}


def places(directory: Path, index: int = 0) -> dict[str, str | None]:
    """Return where the scale of each input goes, by the first product that reads it."""
    import numpy as np

    checkpoint = Checkpoint(directory)
    layer, config = load_layer(checkpoint, index), checkpoint.config
    (x,) = embedded(checkpoint, [np.arange(24).reshape(2, 12)])
    with torch.inference_mode():
        groups = shared_inputs(layer, lambda given: run_layer(layer, config, index, given)[0], x)
        found = find_folds(layer, lambda other, given: run_layer(other, config, index, given)[0], x, groups)
    for group, fold in zip(groups, found, strict=True):
        assert fold is None or fold.readers == tuple(group)
    return {group[0]: fold and fold.giver for group, fold in zip(groups, found, strict=True)}


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({}, None),  # two query heads to a value head: their inputs of o are no rows of v
        ({"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}, "self_attn.v_proj"),
        ({"num_key_value_heads": 4, "attention_type": "llama"}, "self_attn.v_proj"),
    ],
)
def test_attention(changes: Any, values: str | None, tmp_path: Path) -> None:
    """K is never changed, nor is what comes out of the layer."""
    found = places(write_checkpoint(tmp_path / "c", num_hidden_layers=1, **changes))
    assert found == {"self_attn.q_proj": "input_layernorm", "self_attn.o_proj": values, **MLP}


def test_delta_rules(tmp_path: Path) -> None:
    """Their convolutions and norms of heads let nothing through; their inputs come from a norm like others."""
    checkpoint = write_hybrid(tmp_path / "c")
    kinds = Checkpoint(checkpoint).config.kinds
    delta = next(index for index, kind in enumerate(kinds) if "delta" in kind)
    found = places(checkpoint, delta)
    assert found.pop("linear_attn.o_proj") is None
    first = next(iter(found))
    assert first.startswith("linear_attn.") and found == {first: "input_layernorm", **MLP}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_norm_is_divided_to_numbers_of_its_type(dtype: str) -> None:
    norm, scale = torch.linspace(-2, 2, 41), torch.logspace(-1, 1, 41)
    norm[7] = 0
    found = storable(scale, norm, dtype)
    stored = norm / found
    assert stored.to(getattr(torch, dtype)).float().sub(stored).abs().max() <= 2**-23 * stored.abs().max()
    assert ((found / scale)[norm != 0] - 1).abs().max() < {"float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}[dtype]


def test_weights_that_come_from_a_file_are_not_changed_there(tmp_path: Path) -> None:
    checkpoint = Checkpoint(write_checkpoint(tmp_path / "c", num_hidden_layers=1))
    layer, name = load_layer(checkpoint, 0), "model.layers.0.mlp.down_proj.weight"
    before = checkpoint.tensor(name).clone()
    width = before.shape[1]
    Fold("mlp.up_proj", ("mlp.down_proj",)).apply(layer, torch.full((width,), 3.0))
    assert checkpoint.tensor(name).equal(before) and layer.mlp.down_proj.weight.equal(before * 3)
