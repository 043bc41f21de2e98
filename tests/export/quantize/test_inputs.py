"""Moments are those of what the products read, and the target of rounding is the least squares' solution."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lucid_deploy.export.quantize.gptq import column_order
from lucid_deploy.export.quantize.inputs import (
    ProductErrors,
    embedded,
    final_norm,
    input_moments,
    input_of,
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
        given = input_of(layer.self_attn.q_proj, run, streams[0])
        torch.testing.assert_close(given, layer.input_layernorm(streams[0]))
        assert run(streams[0]).shape == streams[0].shape, "no hook is left behind"


def test_moments_and_what_follows_from_them() -> None:
    """Against sums over tokens, and least squares."""
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(3, 50, 6, generator=generator, dtype=torch.float64) + 1
    given = exact + 0.1 * torch.randn(3, 50, 6, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    moments = input_moments(zip(given, exact, strict=True))
    x, y = given.reshape(-1, 6), exact.reshape(-1, 6)
    torch.testing.assert_close(moments.x_x, x.mT @ x / 150)
    torch.testing.assert_close(moments.x_d, x.mT @ (x - y) / 150)
    errors = ProductErrors(moments, weight)
    target = errors.target(column_order(moments.x_x, 0.0, True))
    torch.testing.assert_close(target, torch.linalg.lstsq(x, y @ weight.mT).solution.mT)
    for rounded in (target, weight, weight.round()):
        wanted = (x @ rounded.mT - y @ weight.mT).norm() / (x @ weight.mT).norm()
        torch.testing.assert_close(errors.of(rounded), float(wanted))
    assert errors.of(target) < errors.of(weight)
    same = ProductErrors(input_moments([(exact, exact)]), weight)
    assert same.target(column_order(moments.x_x, 0.01, False)).equal(weight) and same.of(weight) == 0


def test_moments_of_many_inputs() -> None:
    """More than are computed together: symmetric, and the same as in one product."""
    x = torch.randn(2, 40, 2100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moments = input_moments([(x, x * 0.5), (x[:, :7], x[:, :7] * 0.5)])
    rows = torch.cat([x.reshape(-1, 2100), x[:, :7].reshape(-1, 2100)])
    torch.testing.assert_close(moments.x_x, rows.mT @ rows / len(rows))
    torch.testing.assert_close(moments.d_d, rows.mT @ rows / 4 / len(rows))
    assert moments.x_x.equal(moments.x_x.mT)


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
        table = torch.zeros(97, 64)
        assert not embedded(checkpoint, [ids], table)[0].any()
