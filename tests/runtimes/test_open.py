"""What a runtime cannot do is refused before an artifact is opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.artifact import Artifact, open_artifact
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes import Capabilities, RuntimeOptions, open_session, unregister_runtime
from lucid_deploy.runtimes.open import check_fits
from lucid_deploy.runtimes.torch.session import TorchSession

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.mark.parametrize(
    ("arguments", "message"), [({"runtime": "mxnet"}, "known are"), ({"device": "cuda"}, "runs on cpu")]
)
def test_open_session_refuses(exported: Exported, arguments: dict[str, str], message: str) -> None:
    _, artifact = exported()
    with pytest.raises(LucidError, match=message):
        open_session(artifact, **arguments)


def test_a_registered_runtime_is_opened_with_its_options(registered: Any, exported: Exported) -> None:
    runtime, artifact = registered(), exported()[1]
    with pytest.raises(LucidError, match="That was all"):
        open_session(artifact, RuntimeOptions("recording", "npu:3"), threads=2)
    assert runtime.opened == [RuntimeOptions("recording", "npu:3", threads=2)]
    unregister_runtime("recording")
    with pytest.raises(
        LucidError, match="'recording' is not known; known are auto, torch, onnxruntime, openvino, tensorrt"
    ):
        open_session(artifact, "recording")
    with pytest.raises(LucidError, match="No runtime recording was registered"):
        unregister_runtime("recording")


@pytest.mark.parametrize(
    ("can", "options", "message"),
    [
        ({}, {"provider": "cuda"}, "--provider is for onnxruntime; runtime recording has none"),
        ({}, {"kernels": "functions"}, "--kernels is for onnxruntime; runtime recording has none"),
        ({}, {"device": "cuda"}, r"runs on cpu, not on 'cuda'\. For it there is --runtime torch or tensorrt, or"),
        ({"devices": ("cpu", "npu")}, {"device": "npu:x"}, r"runs on cpu or npu, not on 'npu:x'\.$"),
        ({}, {"device": "cpu:1"}, "not on 'cpu:1'"),
        ({"dtypes": ("float16",)}, {}, "runs models in float16, and .* has float32. Export with --dtype float16"),
        ({"caches": ("static",)}, {}, "runs caches that are static, and .* has growing. Export with --cache static"),
        (
            {"packages": ("no_such_package",), "install": "a[b]"},
            {},
            r'no_such_package is needed .* pip install "a\[b\]"',
        ),
    ],
)
def test_what_it_cannot_do_is_refused_before_it_is_opened(
    can: dict[str, Any], options: dict[str, Any], message: str, registered: Any, exported: Exported
) -> None:
    runtime = registered(Capabilities(**can))
    with pytest.raises(LucidError, match=message):
        open_session(exported()[1], "recording", **options)
    assert runtime.opened == []


def test_sorts_of_cached_tensors_are_refused_unless_declared(registered: Any, exported: Exported) -> None:
    registered(Capabilities(cache_sorts=("state",)))
    with pytest.raises(LucidError, match=r"of the sort state; key of layer 0 \(\w+\) in .* is of the sort rows"):
        open_session(exported()[1], "recording")


def test_what_does_not_fit_is_told_without_opening(registered: Any, exported: Exported) -> None:
    runtime, artifact = registered(Capabilities(caches=("static",))), exported()[1]
    with pytest.raises(LucidError, match="caches that are static"):
        check_fits(artifact, RuntimeOptions("recording"), here=False)
    unregister_runtime("recording")
    runtime = registered(Capabilities(packages=("no_such_package",), install="a"))
    with pytest.raises(LucidError, match="no_such_package is needed"):
        check_fits(artifact, RuntimeOptions("recording"), here=True)
    check_fits(artifact, RuntimeOptions("recording"), here=False)  # another machine may have it
    assert runtime.opened == []


@pytest.mark.parametrize("when", ["before", "between", "half"])
def test_an_artifact_that_is_replaced_while_it_is_opened_is_refused(
    when: str, exported: Exported, artifact_copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its prefill would be of one model and its decode of another, and answer."""
    artifact, newer = open_artifact(artifact_copy), exported(hidden_size=96)[1].directory

    def replaced() -> None:
        artifact_copy.rename(tmp_path / "older")
        shutil.copytree(newer, artifact_copy)

    open_session_there = TorchSession.__init__

    def opening(*arguments: Any, **named: Any) -> None:
        if when == "half":
            replaced()
            raise ValueError("cannot reshape array")
        open_session_there(*arguments, **named)
        if when == "between":
            replaced()

    monkeypatch.setattr(TorchSession, "__init__", opening)
    if when == "before":
        replaced()
    with pytest.raises(CheckFailed, match=r"changed while it was in use|was replaced while it was read"):
        open_session(artifact, "torch")
