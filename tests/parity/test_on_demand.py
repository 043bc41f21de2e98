"""The float64 model whose weights are cast while they are used."""

import numpy as np
import pytest
import torch

from lucid_deploy.parity.on_demand import float64_on_demand
from lucid_deploy.parity.scenarios import Scenario
from lucid_deploy.runtimes.layers import NewTokens
from lucid_deploy.runtimes.torch.layers import TorchLayers
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import VOCAB, assert_same, in_dtype, record, small_model


@pytest.mark.parametrize("changes", [{}, {"attention_type": "llama", "attention_bias": True}, {"use_rope": False}])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_weights_cast_in_use_give_what_a_float64_model_gives(changes, stored):
    model = in_dtype(small_model(max_position_embeddings=48, **changes), stored)
    state = model.state_dict()
    cast = float64_on_demand(model.config, state.__getitem__)
    ids = np.random.default_rng(0).integers(VOCAB, size=(1, 20))
    plain, found = (TorchSession(each) for each in (in_dtype(model, torch.float64), cast))
    assert found.dtype == "float64"
    scenario = Scenario("x", ids[0, :14], ids[0, 14:])
    assert_same(record(found, scenario), record(plain, scenario), 1e-12)
    layers = [TorchLayers(each) for each in (cast, in_dtype(model, torch.float64))]
    a, b = (each.run(NewTokens.after(ids), each.empty_past()) for each in layers)
    np.testing.assert_allclose(a.cached[-1]["value"], b.cached[-1]["value"], atol=1e-12)
    np.testing.assert_allclose(a.logits, b.logits, atol=1e-12)


def test_large_weights_are_cast_in_pieces(monkeypatch):
    model = small_model()
    monkeypatch.setattr("lucid_deploy.parity.on_demand.ELEMENTS", 7 * model.config.hidden_size)
    cast = float64_on_demand(model.config, model.state_dict().__getitem__)
    ids = torch.arange(9)[None]
    torch.testing.assert_close(cast(ids)[0], in_dtype(model, torch.float64)(ids)[0], rtol=0, atol=1e-12)
    assert sum(p.numel() for p in cast.parameters()) < 0.02 * sum(p.numel() for p in model.parameters())
