"""lm_eval's task objects: its own prompts and settings, one score whatever the length."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lucid_deploy.artifact.tokenizer import TextTokenizer
from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.suites import plan
from lucid_deploy.evaluation.suites.haystack import Haystack, open_haystack

pytest.importorskip("lm_eval")
from lucid_deploy.evaluation.suites.tasks import TaskMaker


def test_settings_are_lm_evals(llama_tokenizer: TextTokenizer, data: Path) -> None:
    maker = TaskMaker(llama_tokenizer, lambda: open_haystack("bundled", None), data)
    mniah = maker.make(plan("mniah", ["512"], [3])[0], 2)
    assert mniah.config.generation_kwargs["max_gen_toks"] == 128 and mniah.config.generation_kwargs["until"] == []
    row = mniah.eval_docs[0]
    assert mniah.process_results(row, ["… it is " + row["outputs"][0]]) == {"score": 1.0}
    assert mniah.process_results(row, ["no"]) == {"score": 0.0}
    assert list(mniah.aggregation()) == ["score"]
    babilong = maker.make(plan("babilong", ["0k"], only=["babilong_qa1"])[0])
    assert babilong.config.num_fewshot == 2 and babilong.task_name == "babilong_qa1_0k"
    assert maker.facts["seed"] == 0 and maker.facts["haystack"]["source"] == "bundled"


def test_metadata_reach_lm_eval(llama_tokenizer: TextTokenizer, data: Path) -> None:
    maker = TaskMaker(llama_tokenizer, lambda: open_haystack("bundled", None), data, {"note": "x"})
    assert maker.make(plan("longbench", only=["longbench_qasper"])[0]).config.metadata["note"] == "x"


def test_the_text_is_opened_only_if_needles_are_hidden(llama_tokenizer: TextTokenizer, data: Path) -> None:
    def fail() -> Haystack:
        raise AssertionError

    TaskMaker(llama_tokenizer, fail, data).make(plan("scrolls")[0])


def test_a_missing_package_is_named(
    llama_tokenizer: TextTokenizer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(LucidError, match=r"lm_eval.* is needed to run a suite"):
        TaskMaker(llama_tokenizer, lambda: open_haystack("bundled", None), data)
