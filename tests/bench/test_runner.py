"""Contenders run in processes of their own; outputs are compared before anything is timed; rounds are interleaved."""

from __future__ import annotations

import io
import json
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench import Contender, Measurement, Plan, run_plan
from lucid_deploy.bench import runner as runner_module
from lucid_deploy.bench.contenders import KINDS, open_contender
from lucid_deploy.bench.runner import WorkerProcess
from lucid_deploy.bench.worker import Worker, main
from lucid_deploy.errors import CheckFailed, LucidError

Exported = Callable[..., tuple[Path, Artifact]]
IDS = np.array([[5, 5, 5, 9, 5, 5, 3]])


class FakeWorker:
    """Answers without a process: logits by contender, seconds that count the calls."""

    asked: ClassVar[list[tuple[Any, ...]]] = []
    logits: ClassVar[dict[str, float]] = {}

    def __init__(self, contender: Contender) -> None:
        self.contender = contender

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.asked.append((self.contender.name, "closed"))

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        self.asked.append((self.contender.name, op))
        if op == "logits":
            return {"logits": [[1.0, self.logits.get(self.contender.name, 2.0)]]}
        return {"seconds": float(len(self.asked)), "peak": len(self.asked)}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeWorker]:
    monkeypatch.setattr(runner_module, "WorkerProcess", FakeWorker)
    monkeypatch.setattr(FakeWorker, "asked", [])
    return FakeWorker


def two(directory: Path, **changes: Any) -> list[Contender]:
    return [Contender(name, "artifact", str(directory), **changes) for name in ("a", "b")]


def test_rounds_are_interleaved_and_the_first_does_not_count(exported: Exported, fake: type[FakeWorker]) -> None:
    measurements, opened = run_plan(two(exported()[1].directory), Plan((8,), stages=("decode",), repeats=2), "float32")
    assert fake.asked[:4] == [("a", "open"), ("b", "open"), ("a", "logits"), ("b", "logits")]
    assert fake.asked[4:10] == [("a", "decode"), ("b", "decode")] * 3
    assert [(m.contender, m.seconds, m.peak) for m in measurements] == [("a", (7.0, 9.0), 9), ("b", (8.0, 10.0), 10)]
    assert list(opened) == ["a", "b"] and {"a", "b"} == {name for name, what in fake.asked if what == "closed"}


def test_nothing_is_timed_when_outputs_disagree(
    exported: Exported, fake: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "logits", {"b": 2.1})
    contenders = two(exported()[1].directory)
    with pytest.raises(CheckFailed, match=r"b and a disagree by .* nothing was timed"):
        run_plan(contenders, Plan((8,), repeats=1), "float32")
    assert not {"prefill", "decode"} & {what for _, what in fake.asked}
    monkeypatch.setattr(fake, "logits", {"b": float("nan")})
    with pytest.raises(CheckFailed, match="disagree"):
        run_plan(contenders, Plan((8,), repeats=1), "bfloat16")
    monkeypatch.setattr(fake, "logits", {"b": 2.1})
    assert len(run_plan(contenders, Plan((8,), repeats=1), "bfloat16")[0]) == 4  # within bfloat16's rounding


def test_an_interrupted_run_keeps_what_was_measured(
    exported: Exported, fake: type[FakeWorker], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(what: str, _done: int, _total: int) -> None:
        if what.startswith("decode"):
            raise KeyboardInterrupt

    measurements: list[Measurement] = []
    with pytest.raises(KeyboardInterrupt):
        run_plan(two(exported()[1].directory), Plan((8,), repeats=1), "float32", stop, measurements)
    assert [(m.contender, m.stage) for m in measurements] == [("a", "prefill"), ("b", "prefill")]


def test_a_model_of_short_context_is_measured(exported: Exported, tmp_path: Path) -> None:
    """Outputs are compared on no more tokens than its context; a contender that cannot be opened is named."""
    contender = Contender("short", "artifact", str(exported(max_position_embeddings=40)[1].directory))
    measurements, opened = run_plan([contender], Plan((8,), repeats=1, steps=1), "float32")
    assert [found.length for found in measurements] == [8, 8] and measurements[0].peak > 10**7
    assert opened["short"]["runtime"] == "onnxruntime" and opened["short"]["seconds"] > 0
    with pytest.raises(LucidError, match=r"ghost, open: .*no such directory"):
        run_plan([Contender("ghost", "artifact", str(tmp_path / "none"))], Plan((8,)), "float32")


def test_temporary_files_of_a_killed_contender_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = (
        "import pathlib, sys, tempfile; sys.stdin.readline(); "
        "name = pathlib.Path(tempfile.mkdtemp(), 'big'); name.write_text('all weights'); "
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


def test_commands_are_answered_one_by_one(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error is an answer too, and the process continues."""
    commands = [
        {"op": "open", **asdict(Contender("x", "artifact", "nowhere"))},
        {"op": "open", **asdict(Contender("it", "artifact", str(exported()[1].directory)))},
        {"op": "prefill", "batch": 2, "length": 9, "chunk": None},
        {"op": "decode", "batch": 2, "context": 9, "steps": 2},
        {"op": "decode", "batch": 2, "context": 9, "steps": 0},
        {"op": "logits", "seed": 0, "length": 3},
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(each) + "\n" for each in commands)))
    main()
    wrong, opened, prefill, decode, fault, after = map(json.loads, capsys.readouterr().out.splitlines())
    assert wrong["error"].startswith("There is no artifact at nowhere")
    assert opened["runtime"] == "onnxruntime" and opened["seconds"] > 0 and opened["resident"] > 10**7
    assert min(prefill["seconds"], decode["seconds"]) > 0 and min(prefill["peak"], decode["peak"]) > 10**7
    assert fault == {"error": "ZeroDivisionError: float division by zero"} and len(after["logits"]) == 2


def test_contenders_of_one_artifact_give_the_same_logits(exported: Exported) -> None:
    _, artifact = exported()
    contenders = [Contender(kind, kind, str(artifact.directory)) for kind in KINDS]
    sessions = [open_contender(each) for each in contenders]
    first, *others = [session.prefill(IDS, session.empty_cache()) for session in sessions]
    for logits in others:
        np.testing.assert_allclose(logits, first, atol=1e-4)
    assert all(session.context_limit is None for session in sessions), "lengths beyond the model's are measured too"
    ids = np.random.default_rng(1).integers(0, 97, (1, 12))
    cache = sessions[1].empty_cache()
    expected = [sessions[1].prefill(ids[:, :-1], cache)[0, 0], sessions[1].decode(ids[:, -1:], cache)[0, 0]]
    np.testing.assert_allclose(Worker(contenders[0]).logits(seed=1, length=12)["logits"], expected, atol=1e-4)
    with pytest.raises(LucidError, match="contender 'vllm'; known are artifact, torch-dense, torch-blocked"):
        open_contender(Contender("x", "vllm", str(artifact.directory)))


@pytest.mark.parametrize("longest", [512, 513])
def test_only_contexts_beyond_the_models_are_extrapolated(exported: Exported, longest: int) -> None:
    session = open_contender(Contender("it", "artifact", str(exported()[1].directory), longest=longest))
    assert session.allow_extrapolation == (longest != 512)
    assert Plan((8, 500), steps=11).longest == 512 and Plan((8, 500), stages=("prefill",)).longest == 500
