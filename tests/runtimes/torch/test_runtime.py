"""The runtime torch: the PyTorch model on an artifact's weights, where there is a device for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import RuntimeOptions, find_runtime

Exported = Callable[..., tuple[Path, Artifact]]


def test_a_session_knows_its_artifact_and_its_limits(exported: Exported) -> None:
    _, artifact = exported()
    session: Any = find_runtime("torch").open(artifact, RuntimeOptions("torch", threads=2, allow_extrapolation=True))
    assert (session.identity, session.runtime, session.context_limit) == (artifact.identity, "torch", None)
    assert {str(parameter.device) for parameter in session.model.parameters()} == {"cpu"}
    assert torch.get_num_threads() == 1, "the process keeps the number it had"


def test_layers_are_those_of_the_sessions_model(exported: Exported) -> None:
    _, artifact = exported()
    runtime = find_runtime("torch")
    session: Any = runtime.open(artifact, RuntimeOptions("torch"))
    layers = runtime.open_layers(session, None)
    assert (layers.layers, layers.dtype) == (session.layers, "float32")


def test_a_gpu_that_is_not_there(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(LucidError, match="PyTorch sees no CUDA device; run with --device cpu, or install"):
        find_runtime("torch").open(exported()[1], RuntimeOptions("torch", "cuda:1"))
