"""lm_eval's task objects for the tasks of a suite: its own prompts, answers and scores over documents brought here."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.evaluation.suites.haystack import Haystack
from lucid_deploy.evaluation.suites.recorded import read_documents
from lucid_deploy.evaluation.suites.ruler import DOCUMENTS, Generators
from lucid_deploy.evaluation.suites.scrolls import scrolls_task
from lucid_deploy.evaluation.suites.settings import SuiteTask
from lucid_deploy.evaluation.task import TokenizerLike

SCORE = "score"  # the metric of RULER's tasks here; lm_eval names it by the length, since it mixes lengths in a task


class TaskMaker:
    """Makes lm_eval's tasks one by one.

    Attributes:
        facts: What determines RULER's documents beside the settings, for the record; empty for other suites.

    Args:
        tokenizer: Of the model; measures the lengths of RULER's documents.
        haystack: Opens the text that needles are hidden in, if a task needs one.
        data: A directory of data; None: the Hub or its cache.
        metadata: Given to lm_eval as it gives ``--metadata`` to its tasks.
        seed: Of RULER's documents.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike,
        haystack: Callable[[], Haystack],
        data: Path | None = None,
        metadata: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        try:
            from lm_eval.tasks import TaskManager
        except ImportError as error:
            raise missing_extra("lm_eval", "eval", "run a suite") from error
        self._tokenizer, self._open, self._data, self._seed = tokenizer, haystack, data, seed
        self._new_manager = functools.partial(TaskManager, include_defaults=False, metadata=metadata)
        self._managers: dict[str, Any] = {}
        self._generators: Generators | None = None
        self.facts: dict[str, Any] = {}

    def make(self, task: SuiteTask, limit: int | None = None) -> Any:
        """Return lm_eval's task.

        Args:
            task: Which.
            limit: Documents that will be asked for at most; of RULER no more are made.

        Raises:
            LucidError: Its documents cannot be had or made, or a package is not installed.
        """
        try:
            return self._make(task, limit)
        except ImportError as error:
            raise missing_extra(str(error.name or "lm_eval"), "eval", f"run {task.task}") from error

    def _make(self, task: SuiteTask, limit: int | None) -> Any:
        if task.suite == "scrolls":
            made = scrolls_task(task.task, read_documents(task, self._data))
        elif task.suite in ("longbench", "babilong"):
            made = self._load(task, read_documents(task, self._data), {})
        else:
            made = self._load(task, self._ruler(task, limit), _ruler_scores(task))
        made.set_config("task", task.name)
        return made

    def _load(self, task: SuiteTask, rows: list[dict[str, Any]], changes: dict[str, Any]) -> Any:
        import datasets
        import lm_eval.tasks

        def given(**_settings: Any) -> dict[str, datasets.Dataset]:
            return {split: datasets.Dataset.from_list(rows)}

        split = task.task.removeprefix("babilong_") if task.suite == "babilong" else "test"
        changed = {"task": task.task, "custom_dataset": given, **changes}
        folder = "ruler" if task.suite == "mniah" else task.suite
        if folder not in self._managers:  # reading all of lm_eval's tasks takes seconds
            self._managers[folder] = self._new_manager(include_path=str(Path(lm_eval.tasks.__file__).parent / folder))
        with _without_remarks():
            return self._managers[folder].load([{"group": f"{folder}s", "task": [changed]}])["tasks"][task.task]

    def _ruler(self, task: SuiteTask, limit: int | None) -> list[dict[str, Any]]:
        if self._generators is None:
            haystack = self._open()
            self._generators = Generators(self._tokenizer, haystack, self._data, self._seed)
            self.facts = {"haystack": haystack.to_dict(), "sentences": self._generators.sentences, "seed": self._seed}
        rows = self._generators.documents(task, min(DOCUMENTS, limit or DOCUMENTS))
        if not rows:
            raise LucidError(f"{task.name}: none of the documents fits in {task.length} tokens. Take longer --lengths.")
        return rows


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Leave out what lm_eval remarks on every task that brings its own documents."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _ruler_scores(task: SuiteTask) -> dict[str, Any]:
    """Return the changes that give a task of RULER one metric, ``score``, whatever its length."""
    from lm_eval.api.metrics import mean
    from lm_eval.tasks.ruler import common_utils

    part = task.task.startswith("ruler_qa")
    published = common_utils.process_results_part if part else common_utils.process_results

    def scored(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
        return {SCORE: published(doc, results)[str(task.length)]}

    return {
        "process_results": scored,
        "metric_list": [{"metric": SCORE, "aggregation": mean, "higher_is_better": True}],
    }
