"""Run tasks of lm-evaluation-harness on a model, keep what each document scored, and compare two models."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.evaluation.paired import Difference, average_difference, paired_difference
from lucid_deploy.files import atomic_write

if TYPE_CHECKING:
    from rich.table import Table

    from lucid_deploy.evaluation.lm_eval_adapter import LucidLM

_BOOTSTRAP = 1000  # resamples of lm_eval's standard errors


@dataclass(frozen=True)
class HarnessOptions:
    """How tasks are asked.

    Attributes:
        limit: Documents of each task; None: all.
        num_fewshot: Solved examples in each prompt; None: as the task says.
        gen_kwargs: Generation options instead of the tasks'.
        chat: Whether prompts are rendered with the model's chat template.
        seed: Of all random numbers that tasks draw; None: lm_eval's own seeds.
        answers: A file of answers: those that are in it are not computed again; None: no file.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    chat: bool = False
    seed: int | None = None
    answers: Path | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise LucidError(f"The limit must be at least 1 document, not {self.limit}.")
        if self.seed is not None and not 0 <= self.seed < 1 << 32:
            raise LucidError(f"The seed must be 0 or more, and below 2^32, not {self.seed}.")


@dataclass(frozen=True)
class TaskResult:
    """What a model scored in one task.

    Attributes:
        name: Of the task.
        values: By metric, the value over all documents and its standard error, None where lm_eval has none.
        samples: lm_eval's record of each document, in JSON's types, with ``truncated``: whether its prompt was cut.
        aggregation: By metric, how lm_eval makes one value of several documents'.
    """

    name: str
    values: dict[str, tuple[float, float | None]]
    samples: list[dict[str, Any]]
    aggregation: dict[str, Callable[[list[Any]], float]]

    @property
    def truncated(self) -> int:
        return sum(sample["truncated"] for sample in self.samples)

    def scores(self, metric: str) -> list[float]:
        """Return what each document scored by itself."""
        found = [sample[metric] for sample in self.samples]
        whole = self.aggregation[metric]
        return [float(item) if isinstance(item, int | float) else float(whole([item])) for item in found]

    def to_dict(self) -> dict[str, Any]:
        metrics = {name: {"value": value, "standard_error": error} for name, (value, error) in self.values.items()}
        return {"name": self.name, "documents": len(self.samples), "truncated": self.truncated, "metrics": metrics}


def load_tasks(names: Sequence[str], include_path: Path | None, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return lm_eval's tasks of some names, groups or tags, with their documents.

    Args:
        names: As ``lm_eval ls tasks`` lists them.
        include_path: A directory with more tasks as YAML files.
        metadata: As lm_eval gives ``--metadata`` to its tasks.

    Raises:
        LucidError: lm_eval is not installed, a task is unknown, or its data cannot be read.
    """
    if include_path is not None and not include_path.is_dir():
        raise LucidError(f"There are no tasks at {include_path}: no such directory.")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise missing_extra("lm_eval", "eval", "run tasks of lm-evaluation-harness") from error
    manager = TaskManager(include_path=None if include_path is None else str(include_path), metadata=metadata)
    for name in names:
        if name not in manager.all_tasks:
            where = "" if include_path is None else f" and {include_path}"
            raise LucidError(
                f"lm_eval{where} has no task {name!r}. List the tasks with: lm_eval ls tasks; name a directory "
                "with your own with --include-path."
            )
    try:
        return dict(manager.load(list(names))["tasks"])
    except (OSError, ValueError) as error:  # cannot be downloaded, or is not where the task says
        raise LucidError(f"The data of {', '.join(names)} cannot be read: {error}") from error


def run_tasks(model: LucidLM, tasks: dict[str, Any], options: HarnessOptions) -> list[TaskResult]:
    """Ask a model all documents of some tasks, given by name.

    Raises:
        LucidError: Prompts are too long and may not be cut, or a task asks for what the model does not support.
        CheckFailed: The model gave logits that are not finite.
    """
    import torch
    from lm_eval import evaluate
    from lm_eval.api.model import CachingLM
    from lm_eval.utils import handle_non_serializable

    first, other = (0, 1234) if options.seed is None else (options.seed, options.seed)  # lm_eval's defaults
    random.seed(first)
    np.random.seed(other)
    torch.manual_seed(other)
    for task in tasks.values():
        if options.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=options.gen_kwargs, update=True)
        shots = task.get_config("num_fewshot")
        if options.num_fewshot is not None and shots != 0:  # 0 in a task's file means never
            shots = options.num_fewshot
        task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=other)
    cached = None if options.answers is None else CachingLM(model, str(options.answers))
    try:
        results = evaluate(
            lm=cached or model,
            task_dict=dict(tasks),
            limit=options.limit,
            bootstrap_iters=_BOOTSTRAP,
            apply_chat_template=options.chat,
            fewshot_as_multiturn=options.chat,
        )
    finally:
        if cached is not None:
            cached.dbdict.close()
    plain = json.loads(json.dumps(results["samples"], default=handle_non_serializable))
    return [_result(model, name, task, results["results"][name], plain[name]) for name, task in tasks.items()]


def _result(model: LucidLM, name: str, task: Any, found: dict[str, Any], samples: list[dict[str, Any]]) -> TaskResult:
    values = {}
    kept = next((key.partition(",")[2] for key in found if "," in key), "none")  # of several filters, the first
    for key, value in found.items():
        metric, _, filtered = key.partition(",")
        if filtered == kept and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = found.get(f"{metric}_stderr,{filtered}")
            values[metric] = (float(value), float(error) if isinstance(error, int | float) else None)
    cut = {request.doc_id for request in task.instances if model.is_cut(request)}
    mine = sorted((row for row in samples if row.get("filter", kept) == kept), key=lambda row: int(row["doc_id"]))
    return TaskResult(name, values, [{**row, "truncated": row["doc_id"] in cut} for row in mine], task.aggregation())


def compare_tasks(first: Sequence[TaskResult], second: Sequence[TaskResult]) -> dict[tuple[str, str], Difference]:
    """Return the difference in each task and metric; with several tasks, also of their average, as task ``all``.

    A task counts in the average by its first metric.
    """
    found: dict[tuple[str, str], Difference] = {}
    main = []
    for mine, theirs in zip(first, second, strict=True):
        if [row["arguments"] for row in mine.samples] != [row["arguments"] for row in theirs.samples]:
            raise LucidError(
                f"{mine.name}: the two models were asked different prompts (do their chat templates differ?), so their "
                "scores cannot be paired."
            )
        pairs = {metric: (mine.scores(metric), theirs.scores(metric)) for metric in mine.values}
        found.update({(mine.name, metric): paired_difference(*pair) for metric, pair in pairs.items()})
        main.append(next(iter(pairs.values())))
    if len(main) > 1:
        found["all", "mean"] = average_difference(main)
    return found


def result_table(title: str, results: Sequence[TaskResult]) -> Table:
    """Return each task's metrics; scores over prompts that were cut have a star."""
    from rich.markup import escape
    from rich.table import Table

    cut = any(result.truncated for result in results)
    table = Table("task", "metric", title=escape(title), caption="* some prompts were cut" if cut else None)
    for heading in ("value", "standard error", "documents", "cut"):
        table.add_column(heading, justify="right")
    for result in results:
        for metric, (value, error) in result.values.items():
            shown = f"{value:.4f}{'*' if result.truncated else ''}", "" if error is None else f"{error:.4f}"
            table.add_row(escape(result.name), escape(metric), *shown, str(len(result.samples)), str(result.truncated))
    return table


def difference_table(title: str, found: dict[tuple[str, str], Difference]) -> Table:
    """Return the differences between two models as a table."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("task", "metric", title=escape(title))
    for heading in ("difference", "95 % interval", "documents", "better", "worse", "p (McNemar)"):
        table.add_column(heading, justify="right")
    for (task, metric), item in found.items():
        interval, p = f"{item.low:+.4f} to {item.high:+.4f}", "" if item.p is None else f"{item.p:.3g}"
        counts = map(str, (item.documents, item.better, item.worse))
        table.add_row(escape(task), escape(metric), f"{item.value:+.4f}", interval, *counts, p)
    return table


def differences_to_list(found: dict[tuple[str, str], Difference]) -> list[dict[str, Any]]:
    """Return the differences for JSON."""
    return [{"task": task, "metric": metric, **asdict(item)} for (task, metric), item in found.items()]


def write_output(folder: Path, facts: dict[str, Any], results: Sequence[TaskResult], samples: bool) -> None:
    """Write ``results.json`` and, if wanted, ``samples_NAME.jsonl`` of each task into a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for result in results if samples else ():
            lines = "".join(f"{json.dumps(row)}\n" for row in result.samples)
            atomic_write(folder / f"samples_{result.name}.jsonl", lines.encode())
        atomic_write(folder / "results.json", (json.dumps(facts, indent=2) + "\n").encode())
    except OSError as error:
        raise LucidError(f"{folder} cannot be written: {error.strerror or error}.") from error
