"""SCROLLS's metric, without the program that lm_eval fetches for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lucid_deploy.evaluation.suites import plan
from lucid_deploy.evaluation.suites.recorded import read_documents
from lucid_deploy.evaluation.suites.scrolls import ScrollsMetric, normalize_answer, scrolls_task

# The example in the published metric's documentation, and what it says comes out.
PREDICTIONS = ["exact match example", "hello there", "general kenobi"]
REFERENCES = [["exact match example"], ["hello", "hi there"], ["commander kenobi"]]


def test_the_published_example() -> None:
    assert ScrollsMetric("qasper").compute(PREDICTIONS, REFERENCES) == {"f1": pytest.approx(72.2222, abs=1e-4)}
    assert ScrollsMetric("qmsum").compute(PREDICTIONS, REFERENCES) == {
        "rouge/rouge1": pytest.approx(72.2222, abs=1e-4),
        "rouge/rouge2": pytest.approx(33.3333, abs=1e-4),
        "rouge/rougeL": pytest.approx(72.2222, abs=1e-4),
    }


@pytest.mark.parametrize("text", ["The  Old-oil, an Oil; a THE", "theatre a.n. b", "", "¡Año nuevo!"])
def test_normalization_is_squads(text: str) -> None:
    from lm_eval.tasks.longbench.metrics import normalize_answer as published

    assert normalize_answer(text) == published(text)


def test_words_are_not_stemmed() -> None:
    assert ScrollsMetric("qmsum").compute(["mills"], [["mill"]])["rouge/rouge1"] == 0


def test_answers_to_one_question_are_one_document(data: Path) -> None:
    rows = read_documents(plan("scrolls")[0], data)
    documents = scrolls_task("scrolls_qasper", rows).eval_docs
    assert [list(row["outputs"]) for row in documents] == [
        ["the old oil", "oil"],
        ["Yes"],
        ["No"],
        ["the boy repaired it"],
    ]
    assert [row["is_yes_no"] for row in documents] == [False, True, True, False]
