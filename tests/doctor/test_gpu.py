"""The checks of what TensorRT and GPUs need."""

from __future__ import annotations

import importlib.metadata

import pytest

from lucid_deploy.doctor.diagnosis import CHECKS, SWITCH, run_check
from lucid_deploy.errors import LucidError


def test_a_tensorrt_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx", reason='needs TensorRT-RTX: pip install -e ".[rtx]"')
    monkeypatch.setattr("tensorrt_rtx.__version__", "1.2.0")
    found = run_check(next(each for each in CHECKS if each.name == "TensorRT-RTX"))
    assert found.status == "broken" and "too old for engines, which need 1.7 or newer" in found.remark


def test_a_missing_driver_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise LucidError("No CUDA driver was found. Do this.")

    monkeypatch.setattr("lucid_deploy.runtimes.tensorrt.device.open_device", none)
    [check] = [each for each in CHECKS if each.name == "CUDA driver, GPU"]
    found = run_check(check)
    assert (found.status, found.required, found.remark) == ("missing", False, "No CUDA driver was found. Do this.")


@pytest.mark.parametrize(
    ("installed", "status", "remark"),
    [
        (("onnxruntime", "onnxruntime-gpu"), "broken", "both installed, into one folder"),
        (("onnxruntime",), "missing", "it replaces onnxruntime"),
        (("onnxruntime-gpu",), "ok", "providers: "),
    ],
)
def test_onnxruntime_and_onnxruntime_gpu_exclude_each_other(
    installed: tuple[str, ...], status: str, remark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both install into the folder ``onnxruntime``; the remark has the command that keeps only onnxruntime-gpu."""

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.30.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    [check] = [each for each in CHECKS if each.name == "onnxruntime-gpu"]
    found = run_check(check)
    assert (found.status, found.required) == (status, False) and remark in found.remark
    assert (SWITCH in found.remark) == (status != "ok") and "\n" not in found.remark
