"""Results for people and for files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites.report import suite_table, write_output
from lucid_deploy.evaluation.suites.run import TaskResult
from lucid_deploy.evaluation.suites.settings import SuiteTask


def result(truncated: list[bool]) -> TaskResult:
    scores = [1.0, 0.0]
    samples = [{"arguments": [["p", {}]], "doc_id": i} for i in range(2)]
    return TaskResult(SuiteTask("mniah", "niah", 512, 2), {"score": (0.5, 0.25)}, {"score": scores}, truncated, samples)


def shown(truncated: list[bool]) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(suite_table("mniah", [result(truncated)]))
    return capture.get()


def test_scores_over_cut_prompts_are_marked() -> None:
    assert "0.5000*" in shown([False, True]) and "some prompts were cut" in shown([False, True])
    assert "*" not in shown([False, False]) and "0.2500" in shown([False, False])


def test_files(tmp_path: Path) -> None:
    write_output(tmp_path / "new", {"suite": "mniah"}, [result([False, True])], samples=True)
    rows = [json.loads(line) for line in (tmp_path / "new/samples_niah_n2_512.jsonl").read_text().splitlines()]
    assert [row["truncated"] for row in rows] == [False, True]
    assert json.loads((tmp_path / "new/results.json").read_text()) == {"suite": "mniah"}
    (tmp_path / "file").write_text("")
    with pytest.raises(LucidError, match="cannot be written"):
        write_output(tmp_path / "file", {}, [], samples=False)
