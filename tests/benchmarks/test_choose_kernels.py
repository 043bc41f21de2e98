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

from lucid_deploy.plugins.decode_attention.plan import TUNED as DECODE_TUNED
from lucid_deploy.plugins.hosts.triton.model_choice import Modelled
from lucid_deploy.plugins.hosts.triton.static_report import KernelReport
from lucid_deploy.plugins.precondition.plan import TUNED
from lucid_deploy.plugins.shared.plan import Choice


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return importlib.import_module("choose_kernels")


def modelled(choice: Choice, cycles: float, loop_spills: int) -> Modelled:
    report = KernelReport(
        "solve", 90, {}, 4, 255, 0, 0, 0, 8, 400, loop_spills, 0, 0, {"issue": cycles}, cycles, "issue"
    )
    return Modelled(choice, report, cycles / 2)


FASTEST, CLEAN = Choice(64, 32, 4, 1, 32), Choice(64, 16, 4, 1, 32)
FOUND = [
    modelled(FASTEST, 1000.0, 3),
    modelled(CLEAN, 800.0, 0),
    Modelled(Choice(64, 64, 4, 4), None, None, "too much shared memory"),
]


def run(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    target: Path,
    *options: str,
    found: list[Modelled] = FOUND,
    spilling: Choice | None = None,
) -> str:
    def model(operator: str, arch: int, dtype: str, padded: int, progress: Any) -> list[Modelled]:
        for each in found:
            progress(each)
        return found

    monkeypatch.setattr(script, "model", model)
    monkeypatch.setattr(script, "others_spill", lambda operator, arch, dtype, padded, choice: choice == spilling)
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
    assert tuned["choices"]["100"]["float32"]["128"] == [64, 16, 4, 1, 32, 0]
    assert set(tuned["chosen_by_model"]) == {*before["chosen_by_model"], "100 float32 128"}
    assert tuned["measured_on"] == {}
    tuned["choices"]["100"]["float32"]["128"] = before["choices"]["100"]["float32"]["128"]
    assert tuned["choices"] == before["choices"], "nothing else is changed"
    expected = "64 × 32, 4 warps, 1 stages, 32 columns at once: 500, of one pass 1000 by issue, 3 spills in the loop"
    assert expected in said and "64 × 64, 4 warps, 4 stages: too much shared memory" in said


def test_decodings_constants_go_to_its_own_file_and_its_other_forms_are_asked_for(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "tuned.json"
    target.write_text(DECODE_TUNED.read_text())
    deep, shallow = Choice(0, 64, 4, 3), Choice(0, 64, 4, 2)
    found = [modelled(deep, 1000.0, 0), modelled(shallow, 980.0, 0)]
    entry = ("--operator", "decode_attention", "--arch", "90", "--dtype", "float16", "--width", "128")
    said = run(script, monkeypatch, target, *entry, found=found)
    assert json.loads(target.read_text())["choices"]["90"]["float16"]["128"] == [0, 64, 4, 2]
    assert "64 tokens, 4 warps, 3 stages: 500, of one pass 1000 by issue, 0 spills in the loop" in said
    run(script, monkeypatch, target, *entry, found=found, spilling=shallow)
    assert json.loads(target.read_text())["choices"]["90"]["float16"]["128"] == [0, 64, 4, 3]


def test_what_was_measured_is_left_as_it_is(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    target = tmp_path / "tuned.json"
    tuned = json.loads(TUNED.read_text()) | {"measured_on": {"90": "a card"}}
    target.write_text(json.dumps(tuned))
    assert "measured on a card, left as it is" in run(script, monkeypatch, target, "--arch", "90")
    assert json.loads(target.read_text()) == tuned


def test_what_is_kept_for_a_reason_is_left_as_it_is(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Another entry of the same GPU is chosen."""
    target, reason = tmp_path / "tuned.json", "it is liked"
    tuned = json.loads(DECODE_TUNED.read_text()) | {"kept": {"90 float32 128": reason}}
    target.write_text(json.dumps(tuned))
    entry = ("--operator", "decode_attention", "--arch", "90", "--dtype", "float32", "--width")
    deep = [modelled(Choice(0, 16, 4, 4), 1000.0, 0)]
    assert f"90 float32 128: kept as it is: {reason}" in run(script, monkeypatch, target, *entry, "128", found=deep)
    assert json.loads(target.read_text()) == tuned
    run(script, monkeypatch, target, *entry, "64", found=deep)
    written = json.loads(target.read_text())
    assert written["choices"]["90"]["float32"]["64"] == [0, 16, 4, 4] and written["kept"] == tuned["kept"]
