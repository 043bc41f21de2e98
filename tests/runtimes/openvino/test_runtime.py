"""The runtime openvino is found by its name, heeds threads alone, and names what brings its package."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.runtimes import RuntimeOptions, find_runtime, open_session

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize("options", [{"provider": "cuda"}, {"kernels": "functions"}], ids=str)
def test_options_of_onnxruntime_are_refused(options: dict[str, Any], exported: Exported) -> None:
    with pytest.raises(LucidError, match=f"--{next(iter(options))} is for onnxruntime; runtime openvino has none"):
        open_session(exported()[1], "openvino", **options)


def test_without_its_package_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(LucidError, match="The package openvino is needed to run an exported artifact"):
        find_runtime("openvino").check_installed(RuntimeOptions("openvino"))


def test_its_layers_cannot_be_opened(exported: Exported) -> None:
    _, artifact = exported()
    with pytest.raises(LucidError, match="Runtime openvino cannot run a layer by itself"):
        find_runtime("openvino").open_layers(open_session(artifact, "torch"), artifact)
