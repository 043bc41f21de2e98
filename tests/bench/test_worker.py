"""A contender's process: commands in, answers out, memory as the kernel counts it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from lucid_deploy.artifact import Artifact
from lucid_deploy.bench.contenders import Contender
from lucid_deploy.bench.worker import Worker, main
from lucid_deploy.model.checkpoint import Checkpoint, load_model
from lucid_deploy.runtimes.torch.session import TorchSession

Exported = Callable[..., tuple[Path, Artifact]]


def logits_of(checkpoint: Path, dtype: torch.dtype, ids: np.ndarray) -> np.ndarray:
    """Return PyTorch's logits of all tokens but the last at once, and of the last one, ``(2, V)``."""
    session = TorchSession(load_model(Checkpoint(checkpoint), dtype, implementation="reference"))
    cache = session.empty_cache()
    logits = [session.prefill(ids[:, :-1], cache), session.decode(ids[:, -1:], cache)]
    return np.concatenate(logits, axis=1)[0].astype(np.float64)


def test_the_logits_are_the_sessions(exported: Exported) -> None:
    checkpoint, artifact = exported()
    found = Worker(Contender("it", "artifact", str(artifact.directory))).logits(seed=1, length=12)["logits"]
    ids = np.random.default_rng(1).integers(0, 97, (1, 12))
    exact, rounded = (logits_of(checkpoint, dtype, ids) for dtype in (torch.float64, torch.float32))
    assert np.linalg.norm(found - exact) <= 4 * np.linalg.norm(rounded - exact)


def test_commands_are_answered_one_by_one_and_faults_too(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    contender = Contender("it", "artifact", str(exported()[1].directory))
    commands = [
        {"op": "open", **asdict(contender)},
        {"op": "prefill", "batch": 2, "length": 9, "chunk": None},
        {"op": "decode", "batch": 2, "context": 9, "steps": 2},
        {"op": "decode", "batch": 2, "context": 9, "steps": 0},
        {"op": "logits", "seed": 0, "length": 3},
        {"op": "verify", "context": 9, "tokens": 4, "steps": 2},
        {"op": "follow", "prompt": [5, 6, 7, 5], "answer": [6, 7, 5, 6, 7, 9], "speculate": False},
        {"op": "follow", "prompt": [5, 6, 7, 5], "answer": [6, 7, 5, 6, 7, 9], "speculate": True},
    ]
    monkeypatch.setattr("lucid_deploy.generation.speculation.is_near_tie", lambda *_: True)
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(json.dumps(each) + "\n" for each in commands)))
    main()
    opened, prefill, decode, fault, after, verify, plain, ahead = map(json.loads, capsys.readouterr().out.splitlines())
    assert opened["runtime"] == "onnxruntime" and opened["seconds"] > 0 and opened["resident"] > 10**7
    assert min(prefill["seconds"], decode["seconds"]) > 0 and min(prefill["peak"], decode["peak"]) > 10**7
    assert fault == {"error": "ZeroDivisionError: float division by zero"}
    assert len(after["logits"]) == 2
    assert min(verify["seconds"], plain["seconds"], ahead["seconds"]) > 0
    assert plain["proposed"] == 0 and ahead["accepted"] >= 4 and ahead["near_ties"] >= 4


def test_a_vocabulary_of_one_token(exported: Exported) -> None:
    artifact = exported(vocab_size=1, eos_token_id=0)[1]
    worker = Worker(Contender("it", "artifact", str(artifact.directory)))
    assert worker.decode(batch=2, context=9, steps=1)["seconds"] > 0
    assert worker.verify(context=9, tokens=4, steps=1)["seconds"] > 0


def test_an_expected_error_is_its_message(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = {"op": "open", **asdict(Contender("x", "artifact", "nowhere"))}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(command) + "\n"))
    main()
    assert json.loads(capsys.readouterr().out)["error"].startswith("There is no artifact at nowhere")
