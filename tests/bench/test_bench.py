"""Benchmarks: outputs checked first, ratios paired, results complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench import Contender, Measurement, Plan, run_plan
from lucid_deploy.bench.report import decode_bytes, exponents, paired_ratio
from lucid_deploy.cli import main
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes import RuntimeOptions

Exported = Callable[..., tuple[Path, Artifact]]


def test_ratios_are_paired_by_round() -> None:
    # A machine that becomes ten times slower halfway must not change the ratio.
    assert paired_ratio([2, 2, 20, 20], [1, 1, 10, 10]) == {"median": 2, "min": 2, "max": 2}


def test_exponent_of_a_known_curve() -> None:
    points = [Measurement("a", "prefill", 1, n, (3e-6 * n**1.5,), 0) for n in (100, 200, 800)]
    assert exponents(points)["a, prefill, batch 1"] == pytest.approx(1.5)
    assert exponents(points[:2]) == {}


def test_bytes_of_a_decode_step(exported: Exported) -> None:
    _, artifact = exported()
    weights = 10**6
    embedding = 97 * 64 * 4
    cache = 2 * 2 * 2 * 36 * 100 * 3 * 4  # K and Y, layers, heads, width, tokens, rows, bytes
    assert decode_bytes(artifact.config, "float32", weights, 3, 100) == weights - embedding + cache


def test_bench_command_measures_all_contenders(exported: Exported, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason='plots need: pip install ".[bench]"')
    _, artifact = exported()
    target = tmp_path / "out.json"
    arguments = ["bench", str(artifact.directory), "--lengths", "8,40", "--repeats", "2", "--steps", "2"]
    for baseline in ("standard", "torch-dense", "torch-blocked", "transformers"):
        arguments += ["--baseline", baseline]
    result = CliRunner().invoke(main, [*arguments, "--json", str(target), "--plot", str(tmp_path / "plots")])
    assert result.exit_code == 0, result.output
    report = json.loads(target.read_text())
    names = [artifact.directory.name, "standard", "torch-dense", "torch-blocked", "transformers"]
    points = {(row["contender"], row["stage"], row["length"]) for row in report["measurements"]}
    assert points == {(name, stage, n) for name in names for stage in ("prefill", "decode") for n in (8, 40)}
    for row in report["measurements"]:
        assert len(row["seconds"]) == 2 and row["median"] > 0 and row["peak"] > 10**7
    assert report["machine"]["versions"]["onnxruntime"] and report["machine"]["copy_bytes_per_second"] > 0
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {"prefill.png", "decode.png"}


def test_nothing_is_timed_when_outputs_disagree(exported: Exported, tmp_path: Path) -> None:
    import shutil

    _, artifact = exported()
    other = Path(shutil.copytree(artifact.directory, tmp_path / "other"))
    weights = np.memmap(other / "weights.bin", np.float32, "r+")
    weights[: len(weights) // 2] *= 1.5
    weights.flush()
    contenders = [
        Contender("a", "artifact", str(artifact.directory)),
        Contender("b", "artifact", str(artifact.directory), RuntimeOptions("torch")),
    ]
    measurements, _ = run_plan(contenders, Plan((8,), repeats=1, steps=1), "float32")
    assert len(measurements) == 4

    from lucid_deploy.bench import runner

    original = runner.WorkerProcess.ask

    def ask(self: runner.WorkerProcess, op: str, **arguments: object) -> dict:
        if op == "open" and self.contender.name == "b":
            arguments["artifact"] = str(other)
        return original(self, op, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.WorkerProcess, "ask", ask)
        with pytest.raises(CheckFailed, match="b and a disagree"):
            run_plan(contenders, Plan((8,), repeats=1, steps=1), "float32")


def test_a_contender_that_cannot_be_opened_is_named(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=r"ghost, open: .*no such directory"):
        run_plan([Contender("ghost", "artifact", str(tmp_path / "none"))], Plan((8,)), "float32")
