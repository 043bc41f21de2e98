"""Errors of logits are those of a model with the weights exchanged, and the model stays as it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.export.quantize.sensitivity import LogitErrors, by_kind, kind_of, sensitivities
from lucid_deploy.model.checkpoint import Checkpoint, load_model


def test_errors_of_exchanged_weights(make_checkpoint: Any) -> None:
    checkpoint = Checkpoint(make_checkpoint())
    ids = np.random.default_rng(0).integers(0, 97, (2, 30))
    errors, model = LogitErrors(checkpoint, ids), load_model(checkpoint)
    name = "model.layers.0.self_attn.k_proj.weight"
    changed = checkpoint.tensor(name) * 1.1
    exact = model(torch.from_numpy(ids))[0]
    model.model.layers[0].self_attn.k_proj.weight.data = changed
    found = model(torch.from_numpy(ids))[0]
    wanted = ((found - exact).norm(dim=-1) / exact.norm(dim=-1)).mean()
    assert errors.of({name: changed}) == pytest.approx(float(wanted), rel=1e-4) and wanted > 1e-4
    assert errors.of({}) == 0, "its own weights are back"
    kinds = by_kind(list(checkpoint.stored_shapes()), checkpoint.tied)
    assert kinds["k_proj"] == [name, name.replace(".0.", ".1.")]
    table = sensitivities(errors, {"k_proj": kinds["k_proj"]}, lambda name: checkpoint.tensor(name) * 1.1)
    assert table["k_proj"] > errors.of({name: changed}) / 2


def test_kinds() -> None:
    assert [kind_of("lm_head.weight"), kind_of("model.embed_tokens.weight", True)] == ["lm_head"] * 2
