"""The command that writes what the model chooses, with a stand-in for the compiler."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("triton", reason='compiled kernels are read with Triton: pip install -e ".[kernels]"')

from lucid_deploy.plugins.hosts.triton.model_choice import Modelled
from lucid_deploy.plugins.hosts.triton.static_report import KernelReport
from lucid_deploy.plugins.precondition.plan import TUNED
from lucid_deploy.plugins.shared.plan import Choice


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("choose_kernels")


def modelled(choice: Choice, cycles: float, loop_spills: int) -> Modelled:
    report = KernelReport("solve", 90, 4, 255, 0, 0, 0, 8, 400, loop_spills, {"issue": cycles}, cycles, "issue")
    return Modelled(choice, report)


FASTEST, CLEAN = Choice(64, 32, 4, 1, 32), Choice(64, 16, 4, 1, 32)
FOUND = [
    modelled(FASTEST, 1000.0, 3),
    modelled(CLEAN, 800.0, 0),
    Modelled(Choice(64, 64, 4, 4), None, "too much shared memory"),
]


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, target: Path, *options: str) -> str:
    def model(arch: int, dtype: str, padded: int, progress: Any) -> list[Modelled]:
        for each in FOUND:
            progress(each)
        return FOUND

    monkeypatch.setattr(script, "model", model)
    result = CliRunner().invoke(script.main, ["--output", str(target), *options], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_best_without_spills_is_written_and_all_are_printed(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "tuned.json"
    target.write_text(TUNED.read_text())
    said = run(script, monkeypatch, target, "--arch", "100", "--dtype", "float32", "--width", "128")
    tuned, before = json.loads(target.read_text()), json.loads(TUNED.read_text())
    assert tuned["choices"]["100"]["float32"]["128"] == [64, 16, 4, 1, 32]
    assert set(tuned["chosen_by_model"]) == {*before["chosen_by_model"], "100 float32 128"}
    assert tuned["measured_on"] == {}
    tuned["choices"]["100"]["float32"]["128"] = before["choices"]["100"]["float32"]["128"]
    assert tuned["choices"] == before["choices"], "nothing else is changed"
    assert "64 × 32, 4 warps, 1 stages, 32 columns at once: 500 by issue, 3 spills in the loop" in said
    assert "64 × 64, 4 warps, 4 stages: too much shared memory" in said


def test_what_was_measured_is_left_as_it_is(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "tuned.json"
    tuned = json.loads(TUNED.read_text()) | {"measured_on": {"90": "a card"}}
    target.write_text(json.dumps(tuned))
    assert "measured on a card, left as it is" in run(script, monkeypatch, target, "--arch", "90")
    assert json.loads(target.read_text()) == tuned
