"""Proof by extension: a runtime from outside, found through the public entry point, does what the product's do.

No file of the product knows it. It stands in ``reference_runtime.py``, as it would in a package of somebody's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lucid_deploy.artifact import Artifact
from lucid_deploy.cli import main
from lucid_deploy.runtimes.registry import runtime_names
from tests.extension.reference_runtime import ReferenceSession

Exported = Callable[..., tuple[Path, Artifact]]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package that says where the runtime is, and nothing else."""
    info = tmp_path / "lucid_reference-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lucid-reference\nVersion: 1.0\n")
    entry = "[lucid_deploy.runtimes]\nreference = tests.extension.reference_runtime:RUNTIME\n"
    (info / "entry_points.txt").write_text(entry)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture
def small(exported: Exported) -> Artifact:
    """One layer and contexts of up to 96 tokens."""
    return exported(num_hidden_layers=1, max_position_embeddings=96)[1]


def lucid_deploy(*arguments: Any) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)


def test_the_runtime_is_found_and_verified(small: Artifact) -> None:
    assert "reference" in runtime_names()
    run = lucid_deploy("verify", small.directory, "--runtime", "reference", "--steps", "6", "--json", "-")
    assert run.exit_code == 0, run.output
    report = json.loads(run.stdout)
    assert report["passed"] and report["runtime"] == "reference" and report["environment"]["versions"]["onnx"]
    assert max(scenario["prompt_tokens"] for scenario in report["scenarios"]) > 64
    assert {item["schedule"] for item in report["comparisons"]} >= {
        "one-shot",
        "chunks",
        "by token",
        "in turns",
        "padded",
    }


def test_verification_finds_a_fault_in_the_runtime(small: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded tokens are rotated as if they stood one place further on."""
    run_graph = ReferenceSession._run

    def misplaced(self: ReferenceSession, stage: str, tokens: Any, *rest: Any) -> Any:
        return run_graph(self, stage, replace(tokens, positions=tokens.positions + (stage == "decode")), *rest)

    monkeypatch.setattr(ReferenceSession, "_run", misplaced)
    run = lucid_deploy("verify", small.directory, "--runtime", "reference", "--steps", "2")
    assert run.exit_code == 1 and "layer 0 K" in run.stderr


def test_the_runtime_generates_what_onnxruntime_does(small: Artifact) -> None:
    asked = ["run", small.directory, "--prompt-ids", "5,9,9,9,40,3", "-n", "12", "--ignore-eos", "--json"]
    ours, other = (json.loads(lucid_deploy(*asked, "--runtime", name).stdout) for name in ("reference", "onnxruntime"))
    assert ours["ids"] == other["ids"] and len(ours["ids"]) == 12
    assert (ours["runtime"], ours["provider"], ours["kernels"]) == ("reference", None, None)


def test_the_runtime_runs_batches(small: Artifact, tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    lines = [{"prompt_ids": [3 + index] * (4 + 9 * index), "max_new_tokens": 3 + index} for index in range(4)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = ["run", small.directory, "--batch", prompts, "--output", answers, "--rows", 2, "--ignore-eos"]
    found = []
    for name in ("reference", "onnxruntime"):
        assert lucid_deploy(*asked, "--overwrite", "--runtime", name).exit_code == 0
        rows = [json.loads(line) for line in answers.read_text().splitlines()]
        found.append({row["line"]: row["ids"] for row in rows})
    assert found[0] == found[1] and [len(found[0][line]) for line in sorted(found[0])] == [3, 4, 5, 6]


def test_capabilities_that_are_not_declared_are_refused(small: Artifact, exported: Exported) -> None:
    static = exported(cache="static")[1].directory
    for arguments, message in (
        ([static], "Runtime reference takes artifacts whose cache is growing"),
        ([small.directory, "--provider", "cuda"], "--provider is for onnxruntime; runtime reference does not take it"),
        (
            [small.directory, "--threads", "2"],
            "--threads is for torch, onnxruntime or openvino; runtime reference does not take it",
        ),
        ([small.directory, "--device", "cuda"], "Runtime reference runs on cpu, not on 'cuda'"),
    ):
        result = lucid_deploy("run", *arguments, "--prompt-ids", "5", "--runtime", "reference")
        assert result.exit_code == 2 and result.stderr.startswith(f"Error: {message}")
