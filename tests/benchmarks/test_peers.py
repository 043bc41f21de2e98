"""benchmarks/peers.py races all types in one run; its smallest form runs here."""

from __future__ import annotations

import json
from pathlib import Path

import common
import peers
import pytest
from click.testing import CliRunner

from lucid_deploy.bench import Contender, Measurement, Plan


def test_ratios_are_to_the_type_s_own() -> None:
    contenders = {kind: [Contender(f"{name}-{kind}", "artifact", "") for name in ("lucid", "other")] for kind in "ab"}
    seconds = {"lucid-a": (1.0, 2.0), "other-a": (2.0, 6.0), "lucid-b": (4.0, 4.0), "other-b": (2.0, 2.0)}
    measured = [Measurement(name, "prefill", 1, 8, each, 0) for name, each in seconds.items()]
    reports = peers.reports_of(contenders, measured, {name: {} for name in seconds}, Plan((8,)), {})
    ratios = {row["contender"]: row["ratio"]["median"] for each in reports.values() for row in each["measurements"]}
    assert ratios == {"lucid-a": 1.0, "other-a": 2.5, "lucid-b": 1.0, "other-b": 0.5}
    assert list(reports["b"]["opened"]) == ["lucid-b", "other-b"]


def test_the_smallest_form_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("matplotlib", "openvino", "xllamacpp"):
        pytest.importorskip(package, reason=f"pip install {package}")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    arguments = ["--shape", "small", "--lengths", "16", "--repeats", "1", "--types", "float32,int4"]
    arguments += ["--kernels", "functions", "--threads", "1", "--plots", str(tmp_path)]
    result = CliRunner().invoke(peers.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "peers.json").read_text())
    assert list(found["types"]) == ["float32", "int4"]
    for kind, report in found["types"].items():
        names = [f"{name}-{kind}" for name in ("lucid", "standard", "llama.cpp", "openvino")]
        assert list(report["opened"]) == names
        assert [(row["stage"], row["contender"]) for row in report["measurements"]] == [
            (stage, name) for stage in ("prefill", "decode") for name in names
        ]
        assert (tmp_path / f"peers-{kind}" / "decode.png").exists()
