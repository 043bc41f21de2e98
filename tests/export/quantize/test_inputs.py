"""Moments are those of what the products read, and the layers make the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lucid_deploy.export.quantize.inputs import (
    ExpertMoments,
    add_moments,
    embedded,
    final_norm,
    inputs_of,
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
        (given,), output = inputs_of([layer.self_attn.q_proj], run, streams[0])
        torch.testing.assert_close(given, layer.input_layernorm(streams[0]))
        assert output.equal(run(streams[0]))


def test_moments_of_many_inputs() -> None:
    """More than are computed together: symmetric, and the same as in one product."""
    x = torch.randn(2, 40, 2100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = add_moments(add_moments(None, x), x[:, :7])
    rows = torch.cat([x.reshape(-1, 2100), x[:, :7].reshape(-1, 2100)])
    torch.testing.assert_close(found, rows.mT @ rows)
    torch.testing.assert_close(found, found.mT)


def test_moments_of_experts_are_those_of_their_own_rows() -> None:
    layer, experts = torch.nn.Module(), torch.nn.Module()
    layer.mlp, experts.is_transposed = experts, False
    moments, x = ExpertMoments(layer), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    for rows in (slice(0, 2), slice(2, 5)):
        for watch in experts.lucid_watchers:
            watch("down_proj", x[rows], torch.tensor([2, 0, 2, 2, 0])[rows], x[rows])
    assert moments.tokens == {("mlp.down_proj", 2): 3, ("mlp.down_proj", 0): 2}
    own = x[[0, 2, 3]].double()
    torch.testing.assert_close(moments.pop("mlp.down_proj", 2), own.mT @ own / 3, rtol=1e-5, atol=1e-6)


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
