"""The layers of the PyTorch model, one by one, compute what its session does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.runtimes.torch.layers import LOGIT_ROWS, TorchLayers
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.runtimes.layer_runs import given_residuals_are_read, same_as_the_session, solves_start_from_v

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize("implementation", ["reference", "blocked"])
def test_they_are_the_sessions(implementation: str, exported: Exported) -> None:
    model = load_model(exported()[0], torch.float32, implementation=implementation)
    same_as_the_session(TorchLayers(model), TorchSession(model))


def test_residuals_from_outside(exported: Exported) -> None:
    given_residuals_are_read(TorchLayers(load_model(exported()[0], torch.float32)))


def test_the_solve_in_view(exported: Exported) -> None:
    solves_start_from_v(TorchLayers(load_model(exported()[0], torch.float64)))


def test_logits_of_all_tokens_in_pieces(exported: Exported) -> None:
    model = load_model(exported()[0], torch.float64)
    ids = np.random.default_rng(0).integers(0, 97, LOGIT_ROWS + 5)
    pieces = list(TorchLayers(model).logits(ids))
    assert [len(piece) for piece in pieces] == [LOGIT_ROWS, 5]
    wanted, _ = model(torch.from_numpy(ids[None]))
    np.testing.assert_allclose(np.concatenate(pieces), wanted[0].detach().numpy(), atol=1e-9)
