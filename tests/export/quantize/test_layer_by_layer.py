"""Layer by layer is the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from lucid_deploy.export.quantize.layer_by_layer import embedded, final_norm, load_layer, run_layer
from lucid_deploy.model.checkpoint import Checkpoint, load_model


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
