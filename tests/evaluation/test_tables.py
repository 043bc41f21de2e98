"""Scores as tables for people."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.evaluation import Question, Task, evaluate
from lucid_deploy.evaluation.tables import percent, render_tables


def test_tables_show_rows_and_columns(mixed: tuple[Task, Any], words: TextTokenizer) -> None:
    task, session = mixed
    report = evaluate(session, words, task)
    (table,) = render_tables(report)
    assert [str(cell) for cell in table.columns[0].cells][:2] == ["2 to 5", "6 to 9"]
    assert [str(cell) for cell in table.columns[1].cells][:2] == ["10", "9"]  # 12 prompts of lengths 2 to 5, two wrong
    assert percent(report.score) == "57 of 60 right, 95.0% (95 % interval 86.3 to 98.3)"
    questions = [
        Question(q.prompt, q.answer, {"length": 1 + i % 2, "depth": "0-20 %"}, i)
        for i, q in enumerate(task.questions[:4])
    ]
    (grid,) = render_tables(
        evaluate(session, words, replace(task, questions=questions, rows="depth", columns="length"))
    )
    assert [[str(cell) for cell in column.cells] for column in grid.columns] == [
        ["0-20 %", "all"],
        ["100.0%", "100.0%"],
        ["50.0%", "50.0%"],
    ]
