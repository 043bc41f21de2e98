"""Layers one by one: which products read the same, and that together they make the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lucid_deploy.export.quantize.inputs import (
    embedded,
    final_norm,
    load_layer,
    run_layer,
    shared_inputs,
)
from lucid_deploy.model.checkpoint import Checkpoint, load_model


def test_products_of_a_layer_and_their_inputs(make_checkpoint: Any) -> None:
    checkpoint = Checkpoint(make_checkpoint())
    streams = embedded(checkpoint, [np.arange(24).reshape(2, 12), np.arange(7)[None]])
    layer = load_layer(checkpoint, 0)

    def run(x: torch.Tensor) -> torch.Tensor:
        return run_layer(layer, checkpoint.config, 0, x)[0]

    with torch.inference_mode():
        groups = shared_inputs(layer, run, streams[0])
        assert groups == [
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["self_attn.o_proj"],
            ["mlp.gate_proj", "mlp.up_proj"],
            ["mlp.down_proj"],
        ]


def test_the_layers_make_the_model(make_checkpoint: Any) -> None:
    checkpoint = Checkpoint(make_checkpoint())
    ids = np.random.default_rng(0).integers(0, 97, (2, 70))
    model = load_model(checkpoint)
    with torch.inference_mode():
        (x,) = embedded(checkpoint, [ids])
        for index in range(checkpoint.config.num_hidden_layers):
            x, cache = run_layer(load_layer(checkpoint, index), checkpoint.config, index, x)
        logits, wanted = model(torch.from_numpy(ids))
        assert model.lm_head(final_norm(checkpoint, x)).equal(logits)
        assert all(a.equal(b) for a, b in zip(cache, wanted[-1], strict=True))
