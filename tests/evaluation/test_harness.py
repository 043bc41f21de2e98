"""Tasks of lm-evaluation-harness: their documents, runs that were stopped, and the comparison of two models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.text import Text

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.harness import (
    HarnessOptions,
    TaskResult,
    compare_tasks,
    difference_table,
    load_tasks,
    result_table,
    run_tasks,
)

pytest.importorskip("lm_eval")
from lucid_deploy.evaluation.lm_eval_adapter import LucidLM

# A task as RULER's are: it makes its documents, of some lengths, and has a metric for each length.
TASK = """task: made
custom_dataset: !function made.documents
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "blue"
process_results: !function made.score
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: "4096", aggregation: !function made.mean, higher_is_better: true}]
"""
CODE = """import random
import datasets
from lm_eval.tasks.ruler.common_utils import aggregate_metrics as mean, get_tokenizer, resolve_tokenizer_name

def documents(**settings):
    tokens = len(get_tokenizer(resolve_tokenizer_name(settings))("fox has red lamp").input_ids)
    lists = [", ".join(["fox has red lamp"] * count) for count in random.sample(range(1, 20), 4)]
    rows = [{"prompt": f"{text}; fox has", "tokens": tokens, "size": 4096 + i % 2} for i, text in enumerate(lists)]
    return {"test": datasets.Dataset.from_list(rows)}

def score(doc, results):
    return {"4096": -1.0, str(doc["size"]): 1.0 if doc["size"] == 4096 else 0.5}
"""


@pytest.fixture
def load(demo: Callable[..., Artifact], tmp_path: Path, given_tasks_only: None) -> Callable[..., dict[str, Any]]:
    (tmp_path / "made.yaml").write_text(TASK)
    (tmp_path / "made.py").write_text(CODE)
    return lambda seed=None: load_tasks(["made"], demo(), tmp_path, {}, seed)


def test_documents_are_made_with_the_tokenizer_and_the_seed(load: Callable[..., dict[str, Any]]) -> None:
    first, again, other = (list(load(seed)["made"].eval_docs) for seed in (None, None, 1))
    assert first == again != other
    assert first[0]["tokens"] == 5  # with the one that begins every text


def test_lengths_are_scored_by_their_own_documents(
    demo: Callable[..., Artifact], load: Callable[..., dict[str, Any]]
) -> None:
    """RULER's tasks score documents of other lengths with -1."""
    (result,) = run_tasks(LucidLM(demo()), load(), HarnessOptions())
    assert {name: value for name, (value, _) in result.values.items()} == {"4096": 1.0, "4097": 0.5}
    assert (result.scores("4096"), result.scores("4097")) == ([1.0, 1.0], [0.5, 0.5])


def test_a_stopped_run_continues(
    demo: Callable[..., Artifact], load: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    class Stopped(Exception):
        pass

    def stop(_what: str, done: int, _total: int) -> None:
        if done:
            raise Stopped

    def run(progress: Any, answers: Path | None = tmp_path / "answers.db") -> list[TaskResult]:
        return run_tasks(LucidLM(demo(), batch_size=1, progress=progress), load(), HarnessOptions(answers=answers))

    tokens: list[int] = []
    with pytest.raises(Stopped):
        run(stop)
    again = run(lambda _what, _done, total: tokens.append(total))
    assert [row.samples for row in again] == [row.samples for row in run(None, None)]
    assert len(tokens) == 3  # the first of four answers was there
    run(lambda *_: pytest.fail("computed again"))


def results(*scores: list[float]) -> list[TaskResult]:
    return [
        TaskResult(
            f"task{i}",
            {"score": (sum(row) / len(row), None)},
            [{"arguments": [[f"prompt {j}", {}]], "score": score, "truncated": False} for j, score in enumerate(row)],
            {"score": np.mean},
        )
        for i, row in enumerate(scores)
    ]


def test_two_models_are_compared_by_task_and_on_average() -> None:
    found = compare_tasks(results([1, 1, 0, 1], [0.5, 1.0]), results([1, 0, 0, 0], [0.5, 0.5]))
    assert found["task0", "score"].value == 0.5
    assert found["task1", "score"].value == 0.25
    mean = found["all", "mean"]
    assert mean.value == 0.375 and (mean.documents, mean.better, mean.worse) == (6, 3, 0)
    table = difference_table("m[int8] less m[int4]", found)
    assert table.row_count == 3 and Text.from_markup(str(table.title)).plain == "m[int8] less m[int4]"
    (mine,) = results([1, 0])
    assert list(compare_tasks([mine], [mine])) == [("task0", "score")]
    assert result_table("m", [mine]).row_count == 1
    other = replace(mine, samples=[{**row, "arguments": [["else", {}]]} for row in mine.samples])
    with pytest.raises(LucidError, match="task0: the two models were asked different prompts"):
        compare_tasks([mine], [other])
    with pytest.raises(LucidError, match="task0: lm_eval gives no metric"):
        compare_tasks([replace(mine, values={})], [mine])
