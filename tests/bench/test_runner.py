"""Outputs are checked before anything is timed, and a contender that fails is named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench import Contender, Plan, run_plan
from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.runtimes import RuntimeOptions

Exported = Callable[..., tuple[Path, Artifact]]


def test_nothing_is_timed_when_outputs_disagree(
    exported: Exported, tmp_path: Path, preloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setattr(sys, "executable", str(preloaded / "python"))  # of the contenders' processes
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
