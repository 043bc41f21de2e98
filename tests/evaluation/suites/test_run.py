"""Suites ask what lm_eval asks, and an artifact scores what lm_eval's own backend over transformers scores."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.answer_log import AnswerLog
from lucid_deploy.evaluation.suites import plan
from lucid_deploy.evaluation.suites.haystack import open_haystack
from tests.evaluation.suites.conftest import Pair

pytest.importorskip("lm_eval")
from lucid_deploy.evaluation.lm_eval_run import simple_evaluate
from lucid_deploy.evaluation.suites.run import SuiteOptions, TaskResult, run_suite
from lucid_deploy.evaluation.suites.tasks import TaskMaker

RULER = ["niah_multikey_2", "niah_multivalue", "ruler_fwe", "ruler_qa_squad"]
SUITES = {
    "ruler": plan("ruler", ["768"], only=RULER),
    "mniah": plan("mniah", ["512"], [2, 5]),
    "longbench": plan("longbench", only=["longbench_2wikimqa", "longbench_qasper"]),
    "babilong": plan("babilong", ["0k"], only=["babilong_qa1", "babilong_qa10"]),
    "scrolls": plan("scrolls"),
}


def maker(pair: Pair, data: Path | None) -> TaskMaker:
    return TaskMaker(pair.tokenizer, lambda: open_haystack("bundled", None), data)


def asked(pair: Pair, data: Path, suite: str, **options: Any) -> list[TaskResult]:
    given = {"limit": 2 if suite in ("ruler", "mniah") else None, "batch": 8, **options}
    return run_suite(pair.session, pair.tokenizer, SUITES[suite], maker(pair, data), SuiteOptions(**given))


def theirs(reference: Any, pair: Pair, data: Path, suite: str, limit: int | None) -> dict[str, Any]:
    """lm_eval's own run of the same task objects, made anew."""
    made = [maker(pair, data).make(task, limit) for task in SUITES[suite]]
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 0)
    return simple_evaluate(model=reference, tasks=made, limit=limit, log_samples=True, bootstrap_iters=0, **seeds)


@pytest.mark.parametrize("suite", SUITES)
def test_an_artifact_scores_what_transformers_scores(llama: Pair, reference: Any, data: Path, suite: str) -> None:
    limit = 2 if suite in ("ruler", "mniah") else None
    found, expected = asked(llama, data, suite), theirs(reference, llama, data, suite, limit)
    for result in found:
        samples = sorted(expected["samples"][result.task.name], key=lambda row: int(row["doc_id"]))
        for mine, other in zip(result.samples, samples, strict=True):
            assert mine["arguments"] == json.loads(json.dumps(other["arguments"]))
            assert mine["target"] == other["target"]
            assert _same(mine["filtered_resps"], other["filtered_resps"])
        for metric, (value, _) in result.values.items():
            assert value == pytest.approx(expected["results"][result.task.name][f"{metric},none"])
    texts = {str(sample["filtered_resps"]) for result in found for sample in result.samples}
    assert len(texts) > len(found) / 2  # it does not say the same to everything


def _same(mine: list[Any], other: list[Any]) -> bool:
    if isinstance(mine[0], str):
        return mine == list(other)
    values = [[row[0] if isinstance(row, list | tuple) else row for row in rows] for rows in (mine, other)]
    return bool(np.allclose(*values, atol=1e-3))


def test_right_answers_score(llama: Pair, data: Path, tmp_path: Path, write_rows: Callable[..., None]) -> None:
    """With answers that the model gives: otherwise equal scores could all be zero."""
    (first, *_) = asked(llama, data, "longbench", limit=1)
    text = first.samples[0]["filtered_resps"][0]
    row = json.loads((data / "longbench/2wikimqa.jsonl").read_text().splitlines()[0])
    write_rows(tmp_path / "longbench/2wikimqa.jsonl", [{**row, "answers": [text]}, {**row, "answers": ["qqq"]}])
    tasks = plan("longbench", only=["longbench_2wikimqa"])
    (found,) = run_suite(llama.session, llama.tokenizer, tasks, maker(llama, tmp_path), SuiteOptions())
    assert found.scores["score"] == [1.0, 0.0] and found.values["score"][0] == 0.5


def test_batches_of_one_and_eight_are_equal(llama: Pair, data: Path) -> None:
    one, eight = (asked(llama, data, "scrolls", batch=size) for size in (1, 8))
    for mine, other in zip(one, eight, strict=True):
        assert mine.prompts == other.prompts and mine.scores == other.scores
        texts = [[row["filtered_resps"] for row in rows.samples] for rows in (mine, other)]
        assert all(_same(a, b) for a, b in zip(*texts, strict=True))


@pytest.mark.parametrize("name", ["niah_single_1", "niah_multikey_3", "ruler_vt", "ruler_cwe"])
def test_documents_are_those_of_lm_evals_own_task(llama: Pair, name: str) -> None:
    """Its functions, alone and from the same seed; they make 500 documents, of which these are the first."""
    length = 1536
    from lm_eval.tasks.ruler import cwe_utils, niah_utils, vt_utils

    made = maker(llama, None)
    (task,) = plan("ruler", [str(length)], only=[name])
    ours = [dict(row) for row in made.make(task, 3).eval_docs]
    random.seed(0)
    np.random.seed(0)
    published = {
        "niah_single_1": niah_utils.niah_single_1,
        "niah_multikey_3": niah_utils.niah_multikey_3,
        "ruler_vt": vt_utils.get_vt_dataset,
        "ruler_cwe": cwe_utils.get_cw_dataset,
    }[name]
    cwe_utils.RNG.seed(42)
    cwe_utils.RNG.shuffle(sorted(cwe_utils.WORDS))
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = published(tokenizer=str(llama.checkpoint), max_seq_lengths=[length])["test"]
    assert len(theirs) == 500
    assert ours == [dict(theirs[i]) for i in range(3)]


def test_a_run_that_was_stopped_goes_on(llama: Pair, data: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(_what: str, done: int, _total: int) -> None:
        if _what == "Generating" and done:
            raise Stopped

    tasks, path = SUITES["longbench"], tmp_path / "answers.jsonl"
    options = SuiteOptions(batch=2)
    whole = run_suite(llama.session, llama.tokenizer, tasks, maker(llama, data), options)
    with pytest.raises(Stopped), contextlib.closing(AnswerLog(path, {})) as log:
        run_suite(llama.session, llama.tokenizer, tasks, maker(llama, data), options, log, stop)
    kept = AnswerLog(path, {})
    assert 0 < kept.found < 6
    seen: list[int] = []
    again = run_suite(
        llama.session, llama.tokenizer, tasks, maker(llama, data), options, kept, lambda *facts: seen.append(facts[2])
    )
    kept.close()
    assert [row.samples for row in again] == [row.samples for row in whole]
    assert AnswerLog(path, {}).found == 6


@pytest.mark.parametrize(
    ("suite", "options", "message"),
    [
        ("longbench", {"limit": 0}, "at least 1 document, not 0"),
        ("longbench", {"seed": -1}, "seed must be 0 or more"),
        ("longbench", {"batch": 0}, "batch size must be a number of at least 1, not 0"),
        ("scrolls", {"gen_kwargs": {"max_gen_toks": 4}}, "SCROLLS take no generation options"),
        ("scrolls", {"num_fewshot": 2}, "SCROLLS take no solved examples"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    llama: Pair, data: Path, suite: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LucidError, match=message):
        asked(llama, data, suite, **options)


def test_lengths_beyond_the_context_are_refused_before_anything_is_made(llama: Pair) -> None:
    with pytest.raises(LucidError, match="niah_multikey_1_n2_2048 asks for 2048 tokens, and the model's context is 15"):
        run_suite(llama.session, llama.tokenizer, plan("mniah"), maker(llama, None), SuiteOptions())


def test_cut_prompts_are_counted(llama: Pair, data: Path, tmp_path: Path, write_rows: Callable[..., None]) -> None:
    row = json.loads((data / "longbench/2wikimqa.jsonl").read_text().splitlines()[0])
    long = {**row, "context": "The wheel turns in the river. " * 400}
    write_rows(tmp_path / "longbench/2wikimqa.jsonl", [row, long, row])
    tasks = plan("longbench", only=["longbench_2wikimqa"])
    arguments = (llama.session, llama.tokenizer, tasks, maker(llama, tmp_path))
    with pytest.raises(LucidError, match=r"1 of 3 prompts of longbench_2wikimqa are too long: one has [0-9]+ tokens"):
        run_suite(*arguments, SuiteOptions())
    texts = []
    for way in ("left", "middle"):
        (found,) = run_suite(*arguments, SuiteOptions(truncate=way))
        assert found.truncated == [False, True, False] and found.to_dict()["truncated"] == 1
        texts.append([sample["filtered_resps"] for sample in found.samples])
    assert texts[0][0] == texts[1][0]


def test_chats(llama: Pair, data: Path, reference: Any) -> None:
    from lucid_deploy.artifact.chat import load_chat_templates

    templates = load_chat_templates(llama.artifact.directory)
    assert templates is not None
    template = templates.chosen()
    options = SuiteOptions(limit=1, chat=lambda messages, go_on: template.render(messages, go_on=go_on))
    for suite in ("babilong", "mniah"):
        found = run_suite(llama.session, llama.tokenizer, SUITES[suite][:1], maker(llama, data), options)
        made = maker(llama, data).make(SUITES[suite][0], 1)
        expected = simple_evaluate(
            model=reference, tasks=[made], limit=1, apply_chat_template=True, fewshot_random_seed=0
        )
        (theirs,) = expected["samples"][SUITES[suite][0].name]
        assert found[0].samples[0]["arguments"] == json.loads(json.dumps(theirs["arguments"]))
        assert "[user] " in theirs["arguments"][0][0]
        assert found[0].samples[0]["filtered_resps"] == theirs["filtered_resps"]
