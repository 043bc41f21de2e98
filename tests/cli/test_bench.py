"""``lucid-deploy bench`` measures what it was told to, and refuses what makes no sense."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench import Measurement
from lucid_deploy.cli import main

Exported = Callable[..., tuple[Path, Artifact]]


def run(*words: Any) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, words)])


def test_all_contenders_are_measured(
    exported: Exported, tmp_path: Path, preloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(preloaded / "python"))  # of the contenders' processes
    directory, target = exported(num_hidden_layers=1)[1].directory, tmp_path / "out.json"
    result = run(directory, "--lengths", 8, "--repeats", 2, "--baseline", "torch-blocked", "--json", target)
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    names = [directory.name, "torch-blocked"]
    points = {(row["contender"], row["stage"], row["length"]) for row in report["measurements"]}
    assert points == {(name, stage, 8) for name in names for stage in ("prefill", "decode")}
    for row in report["measurements"]:
        assert len(row["seconds"]) == 2 and row["median"] > 0 and row["peak"] > 10**7
    assert f"Opening {directory.name}, 1 of 2" in result.stderr and "Opening torch-blocked, 2 of 2" in result.stderr
    assert report["machine"]["versions"]["onnxruntime"] and report["machine"]["copy_bytes_per_second"] > 0


def measured(*stages: str, stop: bool = False) -> Callable[..., Any]:
    """Return a stand-in for ``run_plan``: a measurement of each contender and stage, or an interruption."""

    def run_plan(contenders: Any, plan: Any, dtype: str, progress: Any, measurements: Any, opened: Any, _: Any) -> None:
        for stage in stages:
            measurements += [Measurement(each.name, stage, 1, plan.lengths[0], (0.1,), 1) for each in contenders]
        opened.update({each.name: {"kernels": None, "numbers": "float32"} for each in contenders})
        if stop:
            raise KeyboardInterrupt

    return run_plan


def test_a_stopped_run_shows_what_was_measured(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = exported()[1].directory
    for stages, shown in ((("prefill",), True), ((), False)):
        monkeypatch.setattr("lucid_deploy.bench.run_plan", measured(*stages, stop=True))
        result = run(directory, "--lengths", 8)
        assert result.exit_code not in (0, 2) and ("prefill" in result.stdout) is shown
        assert ("the run was stopped" in result.stderr) is shown and "Traceback" not in result.stderr


def test_openvino_can_be_measured(exported: Exported) -> None:
    pytest.importorskip("openvino", reason='needs OpenVINO: pip install -e ".[openvino]"')
    options = ("--runtime", "openvino", "--threads", 1, "--lengths", 8, "--repeats", 1)
    result = run(exported(inline=True)[1].directory, *options, "--json", "-")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {(row["stage"], row["length"]) for row in report["measurements"]} == {("prefill", 8), ("decode", 8)}
    assert all(row["median"] > 0 for row in report["measurements"]) and report["machine"]["versions"]["openvino"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lengths", "8,x"], "'8,x' is not a list of whole numbers from 1 up such as 512,2048."),
        (["--batches", "0"], "'0' is not a list of whole numbers from 1 up"),
        (["--stages", "train"], "--stages takes prefill, decode, or prefill,decode, not 'train'"),
        (["--baseline", "vllm"], "'vllm' is not one of 'torch-dense'"),
    ],
)
def test_bad_usage_is_refused(words: list[str], message: str, exported: Exported) -> None:
    result = run(exported()[1].directory, *words)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())


def test_names_and_long_contexts_are_checked_first(exported: Exported) -> None:
    path = exported()[1].directory
    result = run(path, path, "--lengths", "8,513,1k")
    assert result.exit_code == 2 and "Contenders need different names; these are called" in result.stderr
    assert "Note: 513, 1024 tokens are more than the model was made for (512, max_position" in result.stderr
