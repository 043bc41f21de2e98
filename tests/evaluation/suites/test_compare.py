"""Two models on one suite: what was asked must be the same, differences come with intervals."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.text import Text

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites.compare import compare_suites, difference_table, differences_to_list
from lucid_deploy.evaluation.suites.run import TaskResult
from lucid_deploy.evaluation.suites.settings import SuiteTask


def results(*scores: list[float]) -> list[TaskResult]:
    return [
        TaskResult(
            SuiteTask("ruler", f"task{i}", 512),
            {"score": (sum(row) / len(row), None)},
            {"score": row},
            [False] * len(row),
            [{"arguments": [[f"prompt {j}", {}]]} for j in range(len(row))],
        )
        for i, row in enumerate(scores)
    ]


def test_each_task_and_the_average() -> None:
    found = compare_suites(results([1, 1, 0, 1], [0.5, 1.0]), results([1, 0, 0, 0], [0.5, 0.5]))
    assert found["task0_512", "score"].value == 0.5 and found["task0_512", "score"].method == "newcombe"
    assert found["task1_512", "score"].value == 0.25 and found["task1_512", "score"].method == "bootstrap"
    mean = found["all", "mean"]
    assert mean.value == 0.375 and (mean.documents, mean.better, mean.worse) == (6, 3, 0)
    assert differences_to_list(found)[0]["task"] == "task0_512"
    table = difference_table("m[int8] less m[int4]", found)
    assert table.row_count == 3 and Text.from_markup(str(table.title)).plain == "m[int8] less m[int4]"


def test_one_task_has_no_average() -> None:
    assert list(compare_suites(results([1, 0]), results([1, 0]))) == [("task0_512", "score")]


def test_other_prompts_are_refused() -> None:
    (mine,) = results([1, 0])
    other = replace(mine, samples=[{"arguments": [["prompt 0", {}]]}, {"arguments": [["else", {}]]}])
    with pytest.raises(LucidError, match="task0_512: the two models were asked different prompts"):
        compare_suites([mine], [other])
