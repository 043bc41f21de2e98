"""SCROLLS as lm_eval asks it, with documents that are given and its metric computed here.

lm_eval fetches the metric as a program from the Hub and runs it. What it computes is short: for Qasper the F1 of words
after SQuAD's normalization, for QMSum ROUGE without stemming, each the best over the references, times 100 (SCROLLS,
arXiv 2201.03533, and ``metrics/`` of tau/scrolls).
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import string
import sys
from collections import Counter
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

Row = dict[str, Any]
_ROUGE = ("rouge1", "rouge2", "rougeL")


class ScrollsMetric:
    """Computes what SCROLLS's metric computes for one data set.

    Args:
        name: ``qasper`` or ``qmsum``.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """Return the mean over documents, 0 to 100: ``f1``, or ``rouge/rouge1`` and its like.

        Args:
            predictions: A text for each document.
            references: Its right answers.
        """
        pairs = list(zip(predictions, references, strict=True))
        if self._name == "qasper":
            return {"f1": 100 * sum(max(_f1(gold, text) for gold in golds) for text, golds in pairs) / len(pairs)}
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(list(_ROUGE), use_stemmer=False)
        scores = [[scorer.score(gold, text) for gold in golds] for text, golds in pairs]
        return {
            f"rouge/{name}": 100 * sum(max(one[name].fmeasure for one in row) for row in scores) / len(scores)
            for name in _ROUGE
        }


def normalize_answer(text: str) -> str:
    """Return a text as SQuAD's evaluation compares it: lower case, without punctuation, articles and double blanks."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", plain).split())


def _f1(gold: str, text: str) -> float:
    """Return the F1 of the words of two texts."""
    wanted, given = normalize_answer(gold).split(), normalize_answer(text).split()
    same = sum((Counter(wanted) & Counter(given)).values())
    return 2 * same / (len(wanted) + len(given)) if same else 0.0


def _import_published() -> Any:
    """Import lm_eval's tasks of SCROLLS. They take SQuAD's normalization from a module that transformers 5 dropped."""
    name = "transformers.data.metrics"
    dropped = ModuleType(name)
    dropped.squad_metrics = SimpleNamespace(normalize_answer=normalize_answer)  # type: ignore[attr-defined]
    with patch.dict(sys.modules, {} if importlib.util.find_spec(name) else {name: dropped}):
        return importlib.import_module("lm_eval.tasks.scrolls.task")


def scrolls_task(name: str, rows: Sequence[Row]) -> Any:
    """Return lm_eval's task over given documents.

    Args:
        name: ``scrolls_qasper`` or ``scrolls_qmsum``.
        rows: Documents as published; those with one ``id`` are one question with several answers.
    """
    import datasets
    from lm_eval.api.task import ConfigurableTask

    published = _import_published()
    data_set = name.removeprefix("scrolls_")
    base = {"qasper": published.Qasper, "qmsum": published.QMSum}[data_set]

    class Given(base):  # type: ignore[misc, valid-type]
        """The published task without its downloads."""

        def __init__(self) -> None:
            ConfigurableTask.__init__(self, config={"task": name, "metadata": {"version": self.VERSION}})
            self.metric = ScrollsMetric(data_set)

        def has_training_docs(self) -> bool:
            return False

    def given(*_arguments: Any, **_options: Any) -> dict[str, datasets.Dataset]:
        return {"validation": datasets.Dataset.from_list(list(rows))}

    with patch.object(published, "load_dataset", given):
        return Given()
