"""The second moments are those of what the products read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lucid_deploy.export.layer_by_layer import embedded, load_layer, run_layer
from lucid_deploy.export.rounding.inputs import SecondMoments, second_moments, shared_inputs
from lucid_deploy.model.checkpoint import Checkpoint


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
        normed = torch.cat([layer.input_layernorm(x).flatten(0, 1) for x in streams]).double()
        found = second_moments(layer.self_attn.q_proj, run, streams)
        assert found.shape == (64, 64) and found.dtype == torch.float64
        torch.testing.assert_close(found, normed.mT @ normed / 31, rtol=1e-5, atol=1e-6)
        assert run(streams[0]).shape == streams[0].shape, "no hook is left behind"


def test_sums_are_means() -> None:
    x, moments = torch.randn(3, 5, 4, dtype=torch.float64), SecondMoments()
    for part in x:
        moments.add(part)
    torch.testing.assert_close(moments.mean(), torch.einsum("bni,bnj->ij", x, x) / 15)
