"""The system that is shown is the one that a layer solves: against the project's reference, and a plain formula."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lucid_deploy.errors import LucidError
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.plugins.precondition.reference import precondition_reference
from lucid_deploy.runtimes.session import Session
from lucid_deploy.runtimes.solve_weights import PlaceError, solve_weights, solving_layers, system_of
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.conftest import MIXED, write_checkpoint

IDS = [5, 17, 80, 5, 17, 33, 2, 9, 9, 41, 60, 5, 5, 5]  # repeated tokens
EPS = 1e-5
GATE = 1e-12  # a solve in float64 with ‖L⁻¹‖ ≤ 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("solve")


@pytest.fixture(scope="module")
def session(folder: Path) -> Iterator[Session[Any]]:
    """A model in float64 whose keys are correlated."""
    yield TorchSession(load_model(write_checkpoint(folder / "lucid"), torch.float64))


def correlated_keys(n: int, width: int, correlation: float) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(3)
    common, own = rng.standard_normal(width), rng.standard_normal((n, width))
    keys = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    keys[n // 2 :] = keys[: n - n // 2]  # repeated keys
    return keys


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("correlation", [0.0, 0.99])
@pytest.mark.parametrize("n", [1, 129])
def test_it_is_the_system_of_the_reference(n: int, correlation: float, training: bool) -> None:
    keys = 0.05 * correlated_keys(n, 36, correlation)  # so small that eps shows in training's diagonal
    values = np.random.default_rng(4).standard_normal((n, 36))
    found = system_of(keys, EPS, training)
    k, v = (torch.tensor(x)[None, None] for x in (keys, values))
    none = torch.zeros((1, 1, 0, 36), dtype=torch.float64)
    y = precondition_reference(k, v, none, none, None, EPS, training)[0, 0].numpy()
    assert np.abs(found.coefficients @ values - y).max() <= GATE * np.abs(y).max()
    system = found.subtracted + np.diag(found.diagonal)
    assert np.abs(system @ y - values).max() <= GATE * np.abs(values).max() * n
    assert (found.diagonal == 1).all() != training


def test_the_weights_are_those_of_what_the_model_caches(session: Session[Any]) -> None:
    """Y of the cache is L⁻¹ V: V itself is what the same layer caches of each token without a past."""
    cache = session.empty_cache(1)
    session.prefill(np.array([IDS]), cache)
    assert solving_layers(session) == {0: 2, 1: 2}
    found = solve_weights(session, IDS, 0, 1)
    alone = []
    for token in IDS:  # layer 0 sees the token alone
        one = session.empty_cache(1)
        session.prefill(np.array([[token]]), one)
        alone.append(session.layer_arrays(one)[0][1][0, 1, 0])
    y = session.layer_arrays(cache)[0][1][0, 1]
    assert np.abs(found.coefficients @ np.array(alone) - y).max() <= GATE * np.abs(y).max()
    assert found.subtracted.max() > 0.5, "equal tokens at different places subtract each other's part"


def test_what_is_refused(session: Session[Any], folder: Path) -> None:
    with pytest.raises(PlaceError, match=r"layers 0 to 1, not 2\. Layers that solve a system: 0, 1\.") as caught:
        solve_weights(session, IDS, 2, 0)
    assert caught.value.argument == "layer"
    with pytest.raises(PlaceError, match="Layer 1 has key/value heads 0 to 1, not 2") as caught:
        solve_weights(session, IDS, 1, 2)
    assert caught.value.argument == "head"
    mixed = TorchSession(load_model(write_checkpoint(folder / "mixed", **MIXED), torch.float64))
    assert solving_layers(mixed) == {0: 2}
    with pytest.raises(LucidError, match=r"'\w+', which solves no system\. Layers that solve a system: 0\."):
        solve_weights(mixed, IDS, 2, 0)
