"""The runtime tensorrt opens the engines of the GPU that it is told, with what it is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import RuntimeOptions, find_runtime, open_session
from lucid_deploy.runtimes.session import Session

Exported = Callable[..., tuple[Path, Artifact]]


def test_the_gpus_number_and_extrapolation_reach_the_engines(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, ...]] = []

    def opened(*asked: Any) -> Mock:
        given.append(asked)
        return Mock(spec=Session)

    monkeypatch.setattr("lucid_deploy.runtimes.tensorrt.load_engines.open_tensorrt", opened)
    _, artifact = exported()
    open_session(artifact, "tensorrt")
    open_session(artifact, "tensorrt", device="cuda:3", allow_extrapolation=True)
    assert [asked[1:] for asked in given] == [(0, False), (3, True)]
    assert {asked[0].directory for asked in given} == {artifact.directory}


def test_which_package_is_needed_is_said_by_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lucid_deploy.runtimes.runtime.is_installed", lambda package: False)
    runtime = find_runtime("tensorrt")
    runtime.check_installed(RuntimeOptions("tensorrt"))  # says nothing, while others do
    with pytest.raises(LucidError, match="The package onnxruntime is needed"):
        find_runtime("onnxruntime").check_installed(RuntimeOptions())
    assert runtime.options == frozenset()
