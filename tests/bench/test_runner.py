"""Outputs are checked before anything is timed, and a contender that fails is named."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench import Contender, Plan, run_plan
from lucid_deploy.bench.runner import WorkerProcess
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


@pytest.mark.parametrize(
    ("more", "message"), [({"batches": (1, 2)}, "measures one row"), ({"chunk": 4}, "leave out --prefill-chunk")]
)
def test_what_llama_cpp_is_not_measured_at_is_refused_before_anything_is(
    more: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused in the middle, and what had been measured was lost."""
    monkeypatch.delattr("lucid_deploy.bench.runner.WorkerProcess")
    with pytest.raises(LucidError, match=message):
        run_plan([Contender("llama.cpp", "llama.cpp", "none")], Plan((8,), **more), "float32")


def test_a_model_that_was_made_for_few_tokens_is_measured(exported: Exported) -> None:
    """Outputs were compared at 150 tokens, which such a model refuses."""
    contender = Contender("short", "artifact", str(exported(max_position_embeddings=40)[1].directory))
    measurements, _ = run_plan([contender], Plan((8,), repeats=1, steps=1), "float32")
    assert [found.length for found in measurements] == [8, 8]


def test_a_contender_that_cannot_be_opened_is_named(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(LucidError, match=r"ghost, open: .*no such directory"):
        run_plan([Contender("ghost", "artifact", str(tmp_path / "none"))], Plan((8,)), "float32")


def test_what_a_killed_contender_wrote_to_the_temporary_folder_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp's weights are a file as large as the artifact's."""
    writes = (
        "import pathlib, sys, tempfile; sys.stdin.readline(); "
        "name = pathlib.Path(tempfile.mkdtemp(), 'shape.gguf'); name.write_text('all weights'); "
        'print(\'{"name": "%s"}\' % name, flush=True); sys.stdin.readline()'
    )
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(writes)}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    with WorkerProcess(Contender("any", "artifact", "none")) as worker:
        name = Path(worker.ask("open")["name"])
        assert name.is_file() and tmp_path / "tmp" in name.parents
    assert not list((tmp_path / "tmp").iterdir())
