"""Make lm_eval's tasks for a suite: its own prompts, answers and scores over documents that are given to it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks.qasper.metrics import f1_abstractive, normalize_answer

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.harness import HarnessOptions
from lucid_deploy.evaluation.suites import SuiteTask
from lucid_deploy.evaluation.suites.documents import BUNDLED, Haystack, Row, open_haystack, read_documents
from lucid_deploy.evaluation.suites.ruler import DOCUMENTS, Generators
from lucid_deploy.evaluation.task import TokenizerLike, can_write

SCORE = "score"  # the metric of RULER's tasks here; lm_eval names it by the length, since a task of it mixes lengths
_ROUGE = ("rouge1", "rouge2", "rougeL")


def suite_tasks(
    planned: Sequence[SuiteTask],
    tokenizer: TokenizerLike,
    options: HarnessOptions,
    *,
    context: int | None,
    haystack: str | None,
    data: Path | None,
    metadata: dict[str, Any],
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return lm_eval's tasks by name, and what determines their documents, for the record.

    Args:
        context: Most tokens that the model takes; None: any number.
        haystack: ``essays``, or a text file that needles are hidden in; None: the bundled text.
        data: A directory of data; None: the Hub or its cache.
    """
    for task in planned:
        if context is not None and isinstance(task.length, int) and task.length > context and options.truncate is None:
            raise LucidError(
                f"{task.name} asks for {task.length} tokens, and the model's context is {context}: choose --lengths, "
                "or cut the prompts with --truncate."
            )
    opened = functools.partial(open_haystack, haystack or BUNDLED, data)
    maker, tasks = TaskMaker(tokenizer, opened, data, metadata, options.seed or 0), {}
    for number, task in enumerate(planned):
        progress(number, len(planned))
        tasks[task.name] = maker.make(task, options.limit)
    return tasks, maker.facts


class TaskMaker:
    """Makes lm_eval's tasks one by one.

    ``facts`` holds what determines RULER's documents beside the settings; it is empty for other suites. The tokenizer
    measures the lengths of those documents; ``data`` is a directory of data, None for the Hub or its cache.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike,
        haystack: Callable[[], Haystack],
        data: Path | None = None,
        metadata: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self._tokenizer, self._open, self._data, self._seed = tokenizer, haystack, data, seed
        self._metadata = metadata
        self._managers: dict[str, TaskManager] = {}
        self._generators: Generators | None = None
        self.facts: dict[str, Any] = {}

    def make(self, task: SuiteTask, limit: int | None = None) -> Any:
        """Return lm_eval's task, with at most ``limit`` documents of RULER."""
        if task.suite == "scrolls":
            made: Any = ScrollsTask(task.task, read_documents(task, self._data))
        elif task.suite in ("longbench", "babilong"):
            made = self._load(task, read_documents(task, self._data), {})
        else:
            made = self._load(task, self._ruler(task, limit), _ruler_scores(task))
        made.set_config("task", task.name)
        text = str(made.doc_to_text(made.eval_docs[0]))
        if text.isascii() and not can_write(self._tokenizer, text):
            raise LucidError(
                f"This model's tokenizer cannot write the texts of {task.name}. Suites ask in English; the bundled "
                "model is asked with --task recall or needles."
            )
        return made

    def _load(self, task: SuiteTask, rows: list[Row], changes: dict[str, Any]) -> Any:
        """Return lm_eval's task with other documents; its parameter ``custom_dataset`` is made for that."""
        import datasets
        import lm_eval.tasks

        split = task.task.removeprefix("babilong_") if task.suite == "babilong" else "test"
        given = {split: datasets.Dataset.from_list(rows)}
        changed = {"task": task.task, "custom_dataset": lambda **_settings: given, **changes}
        folder = "ruler" if task.suite == "mniah" else task.suite
        if folder not in self._managers:  # reading all of lm_eval's tasks takes seconds
            path = Path(lm_eval.tasks.__file__).parent / folder
            self._managers[folder] = TaskManager(
                include_path=str(path), include_defaults=False, metadata=self._metadata
            )
        log = logging.getLogger("lm_eval")
        level = log.level
        log.setLevel(logging.ERROR)  # it remarks on every task that brings its own documents
        try:
            return self._managers[folder].load([{"group": f"{folder}s", "task": [changed]}])["tasks"][task.task]
        finally:
            log.setLevel(level)

    def _ruler(self, task: SuiteTask, limit: int | None) -> list[Row]:
        if self._generators is None:
            haystack = self._open()
            self._generators = Generators(self._tokenizer, haystack, self._data, self._seed)
            self.facts = {"haystack": haystack.to_dict(), "sentences": self._generators.sentences, "seed": self._seed}
        return self._generators.documents(task, min(DOCUMENTS, limit or DOCUMENTS))


def _ruler_scores(task: SuiteTask) -> dict[str, Any]:
    """Return the changes that give a task of RULER one metric, ``score``, whatever its length."""
    from lm_eval.tasks.ruler import common_utils

    part = task.task.startswith("ruler_qa")
    published = common_utils.process_results_part if part else common_utils.process_results

    def scored(doc: Row, results: list[str]) -> dict[str, float]:
        return {SCORE: published(doc, results)[str(task.length)]}

    metric = {"metric": SCORE, "aggregation": mean, "higher_is_better": True}
    return {"process_results": scored, "metric_list": [metric]}


class ScrollsTask(ConfigurableTask):
    """``scrolls_qasper`` or ``scrolls_qmsum`` as lm_eval asks it, over published documents.

    lm_eval's own class needs a module that transformers 5 dropped, and downloads its metric, which is computed here:
    for Qasper the F1 of words after SQuAD's normalization, for QMSum ROUGE without stemming, each the best over the
    references, times 100 (SCROLLS, arXiv 2201.03533). Rows with one ``id`` are one question with several answers.
    """

    VERSION = 2

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        import datasets

        answers: dict[str, list[str]] = {}
        for row in rows:
            answers.setdefault(row["id"], []).append(row["output"])
        first = {row["id"]: row for row in reversed(rows)}
        docs = []
        for key, outputs in answers.items():
            question, _, text = first[key]["input"].partition("\n\n")
            docs.append({"id": key, "question": question, "text": text, "outputs": outputs})
        self._qasper = name == "scrolls_qasper"
        given = {"validation": datasets.Dataset.from_list(docs)}
        super().__init__(
            config={
                "task": name,
                "custom_dataset": lambda **_settings: given,
                "validation_split": "validation",
                "output_type": "generate_until",
                "doc_to_text": "{{text}}\n\nQuestion: {{question}}\nAnswer:",
                "doc_to_target": "{{' ' + outputs | join(', ')}}",
                "generation_kwargs": {"until": ["\n"]},
                "metadata": {"version": self.VERSION},
            }
        )

    def _asks_yes_or_no(self, doc: Row) -> bool:
        return self._qasper and all(normalize_answer(answer) in ("yes", "no") for answer in doc["outputs"])

    def construct_requests(self, doc: Row, ctx: str, **kwargs: Any) -> Any:
        # Qasper's yes-or-no questions compare two likelihoods.
        chat = kwargs.pop("apply_chat_template", False)
        kwargs.pop("chat_template", None)
        if not self._asks_yes_or_no(doc):
            arguments = (ctx, {"until": ["\n"]})
            return Instance(request_type="generate_until", doc=doc, arguments=arguments, idx=0, **kwargs)
        words = ("yes", "no") if chat else (" yes", " no")
        return [
            Instance(request_type="loglikelihood", doc=doc, arguments=(ctx, word), idx=idx, **kwargs)
            for idx, word in enumerate(words)
        ]

    def process_results(self, doc: Row, results: list[Any]) -> dict[str, Any]:
        if self._asks_yes_or_no(doc):
            prediction = " yes" if results[0] > results[1] else " no"
        else:
            prediction = results[0] if results[0].strip() or not self._qasper else "Unanswerable"
        return dict.fromkeys(self.aggregation(), (prediction, doc["outputs"]))

    def aggregation(self) -> dict[str, Callable[[Sequence[Any]], float]]:
        if self._qasper:
            return {
                "f1": lambda items: (
                    100 * mean([max(f1_abstractive([text], [gold]) for gold in golds) for text, golds in items])
                )
            }
        return {name: lambda items, name=name: _rouge(name, items) for name in _ROUGE}  # type: ignore[misc]

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(self.aggregation(), True)


def _rouge(name: str, items: Sequence[tuple[str, Sequence[str]]]) -> float:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([name], use_stemmer=False)
    best = [max(scorer.score(gold, text)[name].fmeasure for gold in golds) for text, golds in items]
    return 100 * float(mean(best))
