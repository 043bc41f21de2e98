"""``gpu_check``, tested with a fake GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lucid_deploy.plugins.precondition.reference import precondition_reference
from tools.gpu import gpu_cases, gpu_check

PASSES: gpu_check.Run = lambda command: (0, "fine")  # noqa: E731


class FakeGpu:
    """A GPU whose kernels have the error and the times (milliseconds by a call's name) that a test sets."""

    name, capability = "Fake 9000 (TM)", 86

    def __init__(self, times: dict[str, Any] | None = None, error: float = 1e-5) -> None:
        self.times = {"one": 1.0} | (times or {"lucid": 1.1, "flash": 1.0, "dense": 20.0, "standard": 1.09})
        self.error_given = error
        self.measured: list[Any] = []

    def describe(self) -> dict[str, Any]:
        return {"card": self.name, "compute_capability": 86, "cuda": "13.0", "triton": "3.9"}

    def error(self, case: gpu_cases.Accuracy) -> float:
        return self.error_given

    def calls(self, shape: gpu_cases.Shape) -> dict[str, Any]:
        self.measured.append(shape)
        kinds = {"decode": ("lucid", "standard"), "verify": ("lucid", "one"), "solve": ("lucid", "flash", "dense")}
        names = kinds[shape.kernel]
        return {name: time if isinstance(time := self.times[name], str) else (lambda time=time: time) for name in names}

    def milliseconds(self, call: Callable[[], float]) -> float:
        time = call()
        if time < 0:
            raise RuntimeError("out of resources")
        return time


def check(gpu: Any, run: gpu_check.Run = PASSES, only: set[str] | None = None, quick: bool = True) -> dict[str, Any]:
    make = (gpu_cases.Accuracy, gpu_cases.Shape)
    return gpu_check.check(gpu, make, run, only or set(gpu_check.SECTIONS), quick, lambda line: None)


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {section["name"]: section["status"] for section in report["sections"]}


def test_all_heads_lengths_widths_and_types_are_measured() -> None:
    gpu = FakeGpu()
    check(gpu, quick=False)
    solve = {(s.heads, s.tokens, s.width, s.dtype) for s in gpu.measured if s.kernel == "solve"}
    assert len(solve) == 6 * 7 * 2 * 2
    for heads in (1, 32):
        for tokens in (1024, 65536):
            assert (heads, tokens, 128, "bfloat16") in solve and (heads, tokens, 64, "float16") in solve
    assert 32768 in {s.tokens for s in gpu.measured if s.kernel == "decode"}
    assert {s.new for s in gpu.measured if s.kernel == "verify"} == {2, 8, 16}


def test_accuracy_is_checked_with_correlated_keys_pasts_and_padding() -> None:
    cases = gpu_check.accuracy_cases(quick=False)
    for name, wanted in {
        "kernel": {"solve", "decode"},
        "dtype": {"float32", "float16", "bfloat16"},
        "width": {64, 68, 128},
        "correlation": {0.0, 0.9, 0.99},
        "new": {1, 2, 8, 16, 63, 65, 257, 1000},
        "past": {0, 1, 100, 1000},
    }.items():
        assert {case[name] for case in cases} == wanted
    assert sum(case.get("padded", False) for case in cases) > 10


def test_targets_are_judged_by_their_worst_row() -> None:
    report = check(FakeGpu())
    assert [row["met"] for row in report["targets"]] == [True, True, True, True]
    assert report["targets"][0]["worst"] == pytest.approx(1.1) and report["targets"][1]["worst"] == pytest.approx(
        20 / 1.1
    )
    report = check(FakeGpu({"lucid": 2.0, "flash": 1.0, "dense": "needs 900 GiB", "standard": 1.0}))
    assert [row["met"] for row in report["targets"]] == [False, None, False, False]


@pytest.mark.parametrize("error", [1e-2, float("nan"), float("inf")])
def test_kernels_with_wrong_results_are_not_timed(error: float) -> None:
    gpu = FakeGpu(error=error)
    report = check(gpu, only={"benchmark"})
    assert statuses(report) == dict.fromkeys(("engines", "benchmark"), "skipped") | {"kernels": "failed"}
    assert report["sections"][2]["reason"] == "the kernels are wrong" and gpu.measured == []


def test_engines_are_built_verified_and_tested() -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> tuple[int, str]:
        commands.append(command)
        return (1, "Error: K of layer 0 is wrong\n") if "verify" in command and len(commands) > 6 else (0, "")

    [section] = [s for s in check(FakeGpu(), run, {"engines"})["sections"] if s["name"] == "engines"]
    assert section["status"] == "failed"
    assert section["reason"] == "verify, float32, static cache: Error: K of layer 0 is wrong"
    words = [command[3] for command in commands]
    assert words[0] == "plugin" and words.count("build") == words.count("verify") == words.count("run") == 4
    assert all("--speculate" in command for command in commands if command[3] in ("build", "run"))
    assert all("tensorrt" in command for command in commands if "verify" in command)
    assert "gpu" in commands[-1], "the tests that need a GPU"


def test_the_other_shapes_are_measured_when_one_fails() -> None:
    class Failing(FakeGpu):
        def milliseconds(self, call: Callable[[], float]) -> float:
            if self.measured[-1].kernel == "solve" and self.measured[-1].width == 128:
                raise RuntimeError("out of resources")
            return super().milliseconds(call)

    report = check(Failing())
    assert statuses(report)["benchmark"] == "failed"
    rows = report["sections"][2]["rows"]
    assert {("error" in row) for row in rows if row["kernel"] == "decode"} == {False}
    assert "RuntimeError: out of resources" in gpu_check.render(report)


def test_json_and_table_are_written_with_card_versions_and_commit(tmp_path: Path) -> None:
    gpu = FakeGpu({"lucid": 1.1, "flash": 1.0, "dense": "needs 64 GiB", "standard": 1.0}, error=float("inf"))
    report = check(gpu)
    data, table = gpu_check.write(report, tmp_path / "results")
    assert (data.name, table.name) == ("gpu-check-fake-9000-tm.json", "gpu-check-fake-9000-tm.md")
    assert json.loads(data.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))["quick"] is True
    text = gpu_check.render(check(FakeGpu(gpu.times)))
    assert text.startswith("# Fake 9000 (TM)\n")
    assert report["machine"]["commit"] in text and f"torch {torch.__version__.split('+')[0]}" in text
    assert "| float16 | 64 | 16 | 8192 | 1.100 | 1.000 | needs 64 GiB | 1.10 |" in text
    assert "| dense solve over solve, 8192 tokens | ≥ 10.0 |  | not measured |" in text
    assert "| decode over standard attention, 32768 tokens | ≤ 1.02 | 1.10 | **missed** |" in text
    assert "| float16 | 64 | 8 | 32768 | 8 | 1.100 | 1.000 | 1.10 |" in text


def test_the_dense_baseline_solves_the_same_system() -> None:
    torch.manual_seed(0)
    common, own = torch.randn(1, 2, 1, 64), torch.randn(1, 2, 130, 64)
    k, v = 0.9**0.5 * common + 0.1**0.5 * own, torch.randn(1, 2, 130, 64)
    none = k[:, :, :0].double()
    exact = precondition_reference(k.double(), v.double(), none, none, None, gpu_cases.EPS)
    assert (gpu_cases.dense_solve(k, v) - exact).norm() < 1e-3 * exact.norm()
