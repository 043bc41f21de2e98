"""What TensorRT engines cannot do is refused before one is looked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import open_session
from lucid_deploy.runtimes.tensorrt.backend import BACKENDS
from lucid_deploy.runtimes.tensorrt.capabilities import CAPABILITIES

Exported = Callable[..., tuple[Path, Artifact]]


def test_caches_are_kept_in_the_models_type(exported: Exported) -> None:
    _, artifact = exported(cache_dtype="int8")
    with pytest.raises(LucidError, match=r"in the model's type (or|and|,) fp8, .* in int8.*--cache-dtype auto"):
        open_session(artifact, "tensorrt")


def test_it_runs_on_gpus(exported: Exported) -> None:
    with pytest.raises(LucidError, match=r"Runtime tensorrt runs on cuda, not on 'npu'"):
        open_session(exported()[1], "tensorrt", device="npu")


def test_it_is_made_of_either_backend() -> None:
    assert set(CAPABILITIES.packages) == {name.replace("-", "_") for name in BACKENDS}
    assert CAPABILITIES.builds_engines and not CAPABILITIES.reads_layers and not CAPABILITIES.rounds_activations
