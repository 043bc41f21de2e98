"""Fixtures: sessions of several caches and runtimes, gates for these, and runtimes that a test registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.model.checkpoint import load_model
from lucid_deploy.parity.gate import derive_gates
from lucid_deploy.parity.record import TensorId
from lucid_deploy.parity.scenarios import Scenario
from lucid_deploy.runtimes import Capabilities, Session, open_session, register_runtime, registry
from lucid_deploy.runtimes.torch.session import TorchSession
from tests.parity.small_models import record
from tests.runtimes.cache_cases import CASES, IDS
from tests.runtimes.recording import Recording

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def session(request: pytest.FixtureRequest, exported: Exported) -> Session[Any]:
    """A session for each of the cases: a kind of cache and a runtime."""
    cache, runtime = request.param
    return open_session(exported(cache=cache)[1], runtime)


@pytest.fixture(scope="session")
def gates(exported: Exported) -> dict[TensorId, Any]:
    """Gates for the tokens IDS: four times the error of PyTorch in float32 against float64."""
    import torch

    checkpoint, _ = exported()
    scenario = Scenario("tokens", IDS, IDS[:1])
    sessions = [
        TorchSession(load_model(checkpoint, dtype, implementation=kind))
        for dtype, kind in ((torch.float64, "reference"), (torch.float32, "blocked"))
    ]
    reference, baseline = (record(each, scenario) for each in sessions)
    return derive_gates(reference, baseline, "float32")


@pytest.fixture
def registered() -> Iterator[Callable[..., Recording]]:
    """Return a function that registers a runtime which opens nothing; it is unregistered after the test."""

    def register(can: Capabilities | None = None) -> Recording:
        runtime = Recording(can)
        register_runtime(runtime)
        return runtime

    yield register
    registry._REGISTRY._registered.clear()
