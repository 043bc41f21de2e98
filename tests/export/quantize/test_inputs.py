"""Layers run one by one: which linear layers share an input, and that all layers in turn give the model."""

from __future__ import annotations

from typing import Any

import torch

from lucid_deploy.export.quantize.equalize import first_stream, load_layer, run_layer, shared_inputs
from lucid_deploy.model.checkpoint import Checkpoint, load_model


def test_linear_layers_are_grouped_by_the_input_they_share(make_checkpoint: Any) -> None:
    checkpoint = Checkpoint(make_checkpoint())
    stream = first_stream(checkpoint, torch.arange(24).reshape(2, 12))
    layer = load_layer(checkpoint, 0)

    def run(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return run_layer(layer, checkpoint.config, 0, x)

    with torch.inference_mode():
        groups, output = shared_inputs(layer, run, stream)
        assert output.equal(run(layer, stream))
        torch.testing.assert_close(groups[0].values, layer.input_layernorm(stream))
        assert [group.names for group in groups] == [
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["self_attn.o_proj"],
            ["mlp.gate_proj", "mlp.up_proj"],
            ["mlp.down_proj"],
        ]


def test_layers_run_one_by_one_give_the_models_logits(make_checkpoint: Any) -> None:
    checkpoint = Checkpoint(make_checkpoint())
    ids = torch.randint(97, (2, 70), generator=torch.Generator().manual_seed(0))
    model = load_model(checkpoint)
    with torch.inference_mode():
        x = first_stream(checkpoint, ids)
        for index in range(checkpoint.config.num_hidden_layers):
            x = run_layer(load_layer(checkpoint, index), checkpoint.config, index, x)
        assert model.logits(x).equal(model(ids)[0])
