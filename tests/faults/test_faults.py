"""A full disk, an error of the disk, half a write or read, and kill -9, at every call of an export and of a batch.

Old output stays or new output is whole, nothing half-written is left, and each fault gives one error line.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lucid_deploy.plugins.hosts.compiler import find_compiler
from tests.once_per_run import run_folder
from tests.remembered_traces import KEPT

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ALL = bool(os.environ.get("LUCID_FUZZ_EXAMPLES"))  # make fuzz sets it
EVERY = {"export": 25, "batch": 11}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, whose loader takes LD_PRELOAD"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("faults") / "libfaults.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([find_compiler(), "-x", "c", *flags, str(HERE / "faults.c"), "-o", str(made), "-ldl"], check=True)
    return made


def outcomes(job: str, directory: Path, library: Path) -> list[dict[str, Any]]:
    result = directory.with_name("result.json")
    step = 1 if ALL else EVERY[job]
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.faults.under_faults", job, str(directory), str(step), str(result)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(result.read_text())
    assert {outcome["fault"] for outcome in found} == {"no space", "input/output error", "half", "kill"}
    return found


def lines(outcome: dict[str, Any]) -> list[str]:
    return [line for line in outcome["message"].splitlines() if line.startswith("Error: ")]


def test_an_export_leaves_the_old_or_the_new_artifact(
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    library: Path,
    exported: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "place"
    shutil.copytree(exported(num_hidden_layers=1)[0], place / "checkpoint")
    monkeypatch.setenv(KEPT, os.environ.get(KEPT) or str(run_folder(tmp_path_factory, "traces")))
    found = outcomes("export", place, library)
    assert {outcome["status"] for outcome in found} == {0, 2, None}
    for outcome in found:
        assert outcome["state"] in ("old", "new"), outcome
        # Only what was replaced may be left, if removing it failed.
        assert len(outcome["left"]) <= (1 if outcome["status"] == 0 else 0), outcome
        if outcome["fault"] == "half":
            assert (outcome["status"], outcome["state"]) == (0, "new"), outcome
        if outcome["status"] == 2:
            assert len(lines(outcome)) == 1, outcome


def test_a_batch_goes_on_and_answers_each_prompt_once(tmp_path: Path, library: Path, exported: Any) -> None:
    place = tmp_path / "place"
    place.mkdir()
    shutil.copytree(exported()[1].directory, place / "artifact")
    prompts = [{"prompt_ids": [5, 7, 5, 7 + number]} for number in range(4)]
    (place / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    found = outcomes("batch", place, library)
    assert {outcome["status"] for outcome in found} - {1} == {0, 2, None}  # 1: onnxruntime read half a graph
    for outcome in found:
        assert (outcome["state"], outcome["left"]) == ("whole", []), outcome
        if outcome["status"]:
            assert len(lines(outcome)) == 1, outcome
