"""Suites ask what lm_eval asks, and an artifact scores what lm_eval's own backend over transformers scores."""

from __future__ import annotations

import contextlib
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.text import Text

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.harness import (
    HarnessOptions,
    TaskResult,
    compare_tasks,
    difference_table,
    result_table,
    run_tasks,
)
from lucid_deploy.evaluation.suites import SuiteTask, plan
from lucid_deploy.evaluation.suites.documents import open_haystack, read_documents
from tests.evaluation.suites.conftest import Pair

pytest.importorskip("lm_eval")
from lucid_deploy.evaluation.lm_eval_adapter import LucidLM
from lucid_deploy.evaluation.suites.ruler import Generators
from lucid_deploy.evaluation.suites.tasks import ScrollsTask, TaskMaker

RULER = ["niah_multivalue", "ruler_qa_squad"]  # all of the answers count, or any one
SUITES = {
    "ruler": plan("ruler", [768], only=RULER),
    "longbench": plan("longbench", only=["longbench_2wikimqa", "longbench_qasper"]),
    "babilong": plan("babilong", [0], only=["babilong_qa1", "babilong_qa10"]),
    "scrolls": plan("scrolls"),
}


def make(tokenizer: TextTokenizer, data: Path | None, tasks: list[SuiteTask], limit: int | None = None) -> Any:
    maker = TaskMaker(tokenizer, lambda: open_haystack("bundled", None), data)
    return {task.name: maker.make(task, limit) for task in tasks}


def run(pair: Pair, tasks: Any, truncate: str | None = None, progress: Any = None, **options: Any) -> list[TaskResult]:
    lm = LucidLM(pair.artifact, session=pair.session, truncate=truncate, progress=progress)
    return run_tasks(lm, tasks, HarnessOptions(seed=0, **options))


@pytest.mark.parametrize("suite", SUITES)
def test_an_artifact_scores_what_transformers_scores(llama: Pair, reference: Any, data: Path, suite: str) -> None:
    """lm_eval's ``simple_evaluate`` on its own backend, with task objects made anew."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    limit, chat = (2 if suite == "ruler" else None), suite == "babilong"
    found = run(llama, make(llama.tokenizer, data, SUITES[suite], limit), limit=limit, chat=chat)
    theirs = lm_eval.simple_evaluate(
        model=reference,
        tasks=list(make(llama.tokenizer, data, SUITES[suite], limit).values()),
        task_manager=TaskManager(include_defaults=False),
        limit=limit,
        bootstrap_iters=0,
        apply_chat_template=chat,
        **dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 0),
    )
    for result in found:
        samples = sorted(theirs["samples"][result.name], key=lambda row: int(row["doc_id"]))
        for mine, other in zip(result.samples, samples, strict=True):
            assert mine["arguments"] == json.loads(json.dumps(other["arguments"]))
            assert mine["target"] == other["target"] and _same(mine["filtered_resps"], other["filtered_resps"])
        for metric, (value, _) in result.values.items():
            assert value == pytest.approx(theirs["results"][result.name][f"{metric},none"])
        assert ("[user] " in str(result.samples[0]["arguments"])) == chat
    texts = {str(sample["filtered_resps"]) for result in found for sample in result.samples}
    assert len(texts) > len(found) / 2  # it does not say the same to everything


def _same(mine: list[Any], other: list[Any]) -> bool:
    if isinstance(mine[0], str):
        return mine == list(other)
    values = [[row[0] if isinstance(row, list | tuple) else row for row in rows] for rows in (mine, other)]
    return bool(np.allclose(*values, atol=1e-3))


@pytest.fixture(scope="module")
def longbench(llama: Pair, data: Path, tmp_path_factory: pytest.TempPathFactory, write_rows: Any) -> Any:
    """Three documents: one whose right answer the model gives, one that is too long, one whose answer it never gives.

    Otherwise equal scores could all be zero.
    """
    row = json.loads((data / "longbench/2wikimqa.jsonl").read_text().splitlines()[0])
    tasks, folder = plan("longbench", only=["longbench_2wikimqa"]), tmp_path_factory.mktemp("longbench")
    (result,) = run(llama, make(llama.tokenizer, data, tasks), limit=1)
    rows = [{**row, "answers": [result.samples[0]["filtered_resps"][0]]}]
    rows += [{**row, "context": "The wheel turns in the river. " * 400}, {**row, "answers": ["qqq"]}]
    write_rows(folder / "longbench/2wikimqa.jsonl", rows)
    return lambda: make(llama.tokenizer, folder, tasks)


def test_cut_prompts_and_right_answers(llama: Pair, longbench: Any) -> None:
    with pytest.raises(LucidError, match=r"1 of 3 prompts are too long: one has [0-9]+ tokens"):
        run(llama, longbench())
    left, middle = (run(llama, longbench(), truncate=way)[0] for way in ("left", "middle"))
    for found in (left, middle):
        assert [row["truncated"] for row in found.samples] == [False, True, False]
        assert found.scores("score")[0] == 1.0 and found.scores("score")[2] == 0.0
        assert found.to_dict()["truncated"] == 1 and found.to_dict()["documents"] == 3
    assert left.samples[1]["filtered_resps"] != middle.samples[1]["filtered_resps"]
    table = result_table("longbench", [left])
    assert "*" in next(iter(table.columns[2].cells)) and next(iter(table.columns[5].cells)) == "1"


def test_a_stopped_run_continues(llama: Pair, longbench: Any, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(what: str, done: int, _total: int) -> None:
        if what == "Generating" and done:
            raise Stopped

    tokens = []
    options: dict[str, Any] = {"answers": tmp_path / "answers.db", "truncate": "left"}
    whole = run(llama, longbench(), truncate="left")
    with pytest.raises(Stopped):
        run(llama, longbench(), progress=stop, **options)
    again = run(llama, longbench(), progress=lambda _what, _done, total: tokens.append(total), **options)
    assert [row.samples for row in again] == [row.samples for row in whole]
    run(llama, longbench(), progress=lambda *_: pytest.fail("computed again"), **options)
    assert tokens


def results(*scores: list[float]) -> list[TaskResult]:
    return [
        TaskResult(
            f"task{i}",
            {"score": (sum(row) / len(row), None)},
            [{"arguments": [[f"prompt {j}", {}]], "score": score} for j, score in enumerate(row)],
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
    other = replace(mine, samples=[{**row, "arguments": [["else", {}]]} for row in mine.samples])
    with pytest.raises(LucidError, match="task0: the two models were asked different prompts"):
        compare_tasks([mine], [other])


@pytest.mark.parametrize("name", ["niah_multikey_3", "ruler_vt", "ruler_cwe"])
def test_documents_are_those_of_lm_evals_own_task(llama: Pair, name: str) -> None:
    """Its functions, alone and from the same seed; they make 500 documents, of which these are the first."""
    from lm_eval.tasks.ruler import cwe_utils, niah_utils, vt_utils

    published = {
        "niah_multikey_3": niah_utils.niah_multikey_3,
        "ruler_vt": vt_utils.get_vt_dataset,
        "ruler_cwe": cwe_utils.get_cw_dataset,
    }[name]
    state = cwe_utils.RNG.getstate()
    (made,) = make(llama.tokenizer, None, plan("ruler", [1536], only=[name]), 3).values()
    cwe_utils.RNG.setstate(state)
    random.seed(0)
    np.random.seed(0)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        theirs = published(tokenizer=str(llama.checkpoint), max_seq_lengths=[1536])["test"]
    assert len(theirs) == 500 and [dict(row) for row in made.eval_docs] == [dict(theirs[i]) for i in range(3)]


def documents(tokenizer: TextTokenizer, task: SuiteTask, count: int, data: Path | None = None) -> Any:
    return Generators(tokenizer, open_haystack("bundled", None), data, 0).documents(task, count)


@pytest.mark.parametrize("needles", [2, 10])
def test_each_text_has_its_needles(llama_tokenizer: TextTokenizer, needles: int) -> None:
    (task,) = plan("mniah", [1024], [needles])
    rows = documents(llama_tokenizer, task, 3)
    for row in rows:
        assert row["input"].count("One of the special magic numbers for ") == needles
        assert row["outputs"][0] in row["input"]
        assert len(llama_tokenizer.encode(row["input"])) + 128 == row["length"] <= 1024
    random.seed(7)
    assert documents(llama_tokenizer, task, 2) == rows[:2]


def test_questions_of_squad_come_from_the_data(llama_tokenizer: TextTokenizer, data: Path, tmp_path: Path) -> None:
    (task,) = plan("ruler", [768], only=["ruler_qa_squad"])
    rows = documents(llama_tokenizer, task, 4, data)
    assert rows[0]["outputs"] == ["The wheel.", "oil"] and "Question: What does paragraph" in rows[0]["input"]
    assert not any("about 2?" in row["input"] for row in rows)  # those have no answer
    (tmp_path / "squad").mkdir()
    (tmp_path / "squad/dev-v2.0.json").write_text("{}")
    with pytest.raises(LucidError, match=r"dev-v2\.0\.json is not SQuAD 2\.0's development file"):
        documents(llama_tokenizer, task, 1, tmp_path)


@pytest.mark.parametrize("name", ["ruler_vt", "ruler_cwe", "ruler_fwe", "niah_multikey_3"])
def test_too_short_a_length_is_refused(llama_tokenizer: TextTokenizer, name: str) -> None:
    """Of the first three, lm_eval's own generators would never return."""
    (task,) = plan("ruler", [150], only=[name])
    with pytest.raises(LucidError, match=rf"{name}_150: "):
        documents(llama_tokenizer, task, 1)


def test_ruler_has_one_metric(llama_tokenizer: TextTokenizer) -> None:
    (made,) = make(llama_tokenizer, None, plan("mniah", [512], [3]), 2).values()
    assert made.config.generation_kwargs["max_gen_toks"] == 128 and list(made.aggregation()) == ["score"]
    row = made.eval_docs[0]
    assert made.process_results(row, ["… it is " + row["outputs"][0]]) == {"score": 1.0}
    assert made.process_results(row, ["no"]) == {"score": 0.0}


def test_scrolls(data: Path) -> None:
    """The example in the published metric's documentation; answers to one question are one document."""
    qasper, qmsum = (ScrollsTask(task.task, read_documents(task, data)) for task in plan("scrolls"))
    given = ["exact match example", "hello there", "general kenobi"]
    items = list(zip(given, [["exact match example"], ["hello", "hi there"], ["commander kenobi"]], strict=True))
    assert qasper.aggregation()["f1"](items) == pytest.approx(72.2222, abs=1e-4)
    rouge = {name: compute(items) for name, compute in qmsum.aggregation().items()}
    assert rouge == pytest.approx({"rouge1": 72.2222, "rouge2": 33.3333, "rougeL": 72.2222}, abs=1e-4)
    assert qmsum.aggregation()["rouge1"]([("mills", ["mill"])]) == 0  # words are not stemmed
    expected = [["the old oil", "oil"], ["Yes"], ["No"], ["the boy repaired it"]]
    assert [list(row["outputs"]) for row in qasper.eval_docs] == expected
    requests = [qasper.construct_requests(row, "text") for row in qasper.eval_docs]
    assert [isinstance(each, list) for each in requests] == [False, True, True, False]  # yes or no: two likelihoods
    assert qasper.process_results(qasper.eval_docs[1], [(-1.0, True), (-2.0, False)]) == {"f1": (" yes", ["Yes"])}
