"""examples/report_needles.py: two exported models, the same questions, and how they differ."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import report_needles
import train_needles
from click.testing import CliRunner
from needle_training.comparison import Cell
from needle_training.questions import needle_questions
from needle_training.words import VOCABULARY
from recall_training.words import build_tokenizer

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.cli import main as lucid_deploy
from lucid_deploy.evaluation import Report
from lucid_deploy.evaluation.paired import paired_difference
from lucid_deploy.evaluation.report import Outcome, wilson


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both attentions, trained for two steps and exported by the command."""
    folder = tmp_path_factory.mktemp("needles")
    tiny = ["--steps", "2", "--context", "128", "--batch-tokens", "256", "--hidden", "32", "--threads", "1"]
    for attention in ("lucid", "llama"):
        command = ["--output", str(folder / attention), "--attention", attention, *tiny]
        assert CliRunner().invoke(train_needles.main, command).exit_code == 0
        command = [
            "export",
            str(folder / attention),
            "--output",
            str(folder / f"{attention}-artifact"),
            "--cache",
            "growing",
        ]
        result = CliRunner().invoke(lucid_deploy, command)
        assert result.exit_code == 0, result.output
    return {attention: folder / f"{attention}-artifact" for attention in ("lucid", "llama")}


def run(*command: str, rc: int = 0) -> str:
    result = CliRunner().invoke(report_needles.main, command)
    assert result.exit_code == rc, result.output
    return result.output


def test_pairs_are_asked_all_tasks_at_all_lengths(artifacts, tmp_path):
    pair = ["--pair", str(artifacts["lucid"]), str(artifacts["llama"])]
    options = ["--lengths", "128,256", "--limit", "2", "--threads", "1", "--json", str(tmp_path / "needles.json")]
    printed = run(*pair, *pair, *options)
    assert "min left" in printed and "variables" in printed
    data = json.loads((tmp_path / "needles.json").read_text())
    cells = data["cells"]
    assert [cell["length"] for cell in cells] == [128, 256] * 5
    assert {cell["task"] for cell in cells} == {"single", "multi-key", "multi-value", "multi-query", "variables"}
    assert all(cell["lucid"]["count"] == cell["standard"]["count"] == 4 for cell in cells)
    assert all(len(cell["pairs"]) == 2 for cell in cells)


def test_an_ablation_is_of_lucid_alone(artifacts, tmp_path, monkeypatch):
    opened = []
    open_session = report_needles.open_session
    monkeypatch.setattr(
        report_needles, "open_session", lambda *a, **named: opened.append(named) or open_session(*a, **named)
    )
    asked = ["--pair", str(artifacts["lucid"]), str(artifacts["llama"]), "--ablate", "preconditioner"]
    asked += ["--lengths", "128", "--limit", "1", "--task", "single", "--threads", "1"]
    run(*asked, "--runtime", "torch", "--json", str(tmp_path / "ablated.json"))
    assert [options.get("ablate") for options in opened] == ["preconditioner", None]
    assert json.loads((tmp_path / "ablated.json").read_text())["ablate"] == "preconditioner"
    assert "--ablate" in run(*asked, rc=1)  # onnxruntime runs a graph as it is


def test_intervals_are_those_of_the_evaluation(tmp_path):
    build_tokenizer(VOCABULARY).save(str(tmp_path / "tokenizer.json"))
    task = needle_questions(TextTokenizer(tmp_path), "single", 128, limit=4)

    def report(*right: int) -> Report:
        outcomes = [
            Outcome(question, question.answer if each else "", bool(each))
            for question, each in zip(task.questions, right, strict=True)
        ]
        return Report(task, "", "", outcomes)

    cell = Cell("single", 128, [(report(1, 1, 1, 0), report(1, 0, 0, 0)), (report(1, 1, 1, 1), report(0, 0, 0, 0))])
    found = cell.to_dict()
    assert (found["lucid"]["right"], found["lucid"]["count"]) == (7, 8)
    assert found["lucid"]["interval"] == pytest.approx(wilson(7, 8), abs=1e-6)
    assert found["standard"]["interval"] == pytest.approx(wilson(1, 8), abs=1e-6)
    first = found["pairs"][0]["difference"]
    assert first == asdict(paired_difference([1, 1, 1, 0], [1, 0, 0, 0]))
    assert found["difference"]["value"] == pytest.approx((0.5 + 1) / 2)
    assert found["values_found"] == {
        "lucid": 0.875,
        "standard": 0.125,
        "difference": found["values_found"]["difference"],
    }
    assert found["values_found"]["difference"]["value"] == pytest.approx(0.75)
