"""benchmarks/functions.py compares artifacts with standard attention; its smallest form runs here."""

from __future__ import annotations

import json
from pathlib import Path

import common
import functions
import pytest
from click.testing import CliRunner


def test_rounds_of_several_processes_are_put_together() -> None:
    found = [
        functions.Ratio("lucid", cache, "decode", length, (ratio,))
        for ratio in (1.0, 2.0, 6.0)
        for cache, length in (("growing", 8), ("static", 8))
    ]
    growing, static = functions.pooled(found)
    assert (growing.cache, static.cache) == ("growing", "static")
    assert growing.rounds == static.rounds == (1.0, 2.0, 6.0)
    assert functions.quartiles(growing.rounds) == (1.5, 2.0, 4.0)
    assert growing.line() == (
        "lucid, decode at 8, growing: 2.000 (1.500 to 4.000) times standard attention, target 1.10"
    )


def test_the_smallest_form_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    arguments = ["--shape", "small", "--prefill", "16", "--decode", "16", "--repeats", "1", "--processes", "1"]
    result = CliRunner().invoke(functions.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "functions.json").read_text())["ratios"]
    assert {(each["stage"], each["cache"]) for each in found} == {
        ("decode", "growing"),
        ("decode", "static"),
        ("prefill", "growing"),
    }
    assert all(len(each["rounds"]) == 1 and each["rounds"][0] > 0 for each in found)
