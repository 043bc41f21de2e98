"""Run tasks of lm-evaluation-harness on a model, record each document's scores, and compare two models."""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact import Artifact
from lucid_deploy.errors import LucidError
from lucid_deploy.files import atomic_write
from lucid_deploy.runtimes.options import RuntimeOptions
from lucid_deploy.runtimes.session import Session

if TYPE_CHECKING:
    from rich.table import Table

    from lucid_deploy.evaluation.lm_eval_adapter import LucidLM

_BOOTSTRAP = 1000  # resamples of lm_eval's standard errors
RESAMPLES = 10_000  # bootstrap samples for the interval of the difference between two models
_SEED = 0  # of the resampling: the same scores give the same interval
_OTHER_LENGTH = -1  # RULER's tasks have a metric for each length; this is its value for documents of other lengths


@dataclass(frozen=True)
class HarnessOptions:
    """Settings of a run of tasks."""

    limit: int | None = None  # most documents of each task; None: all
    num_fewshot: int | None = None  # few-shot examples in each prompt, unless the task sets 0; None: the task's number
    gen_kwargs: dict[str, Any] = field(default_factory=dict)  # generation options that override the tasks' own
    chat: bool = False  # render prompts with the model's chat template
    seed: int | None = None  # of all random numbers that tasks draw; None: lm_eval's own seeds
    batch: int = 8  # contexts that run at once
    truncate: str | None = None  # how to cut prompts that are too long; None: refuse them
    output: Path | None = None  # a directory for results and answers
    answers: Path | None = None  # file that caches all answers except sampled ones; None: no cache


@dataclass(frozen=True)
class TaskResult:
    """A model's scores in one task."""

    name: str
    values: dict[str, tuple[float, float | None]]  # by metric: value over all documents, lm_eval's standard error
    samples: list[dict[str, Any]]  # lm_eval's record of each document, with `truncated`: whether its prompt was cut
    aggregation: dict[str, Callable[[list[Any]], float]]  # by metric, aggregates the values of documents

    @property
    def truncated(self) -> int:
        return sum(sample["truncated"] for sample in self.samples)

    def scores(self, metric: str) -> list[float]:
        """Return each document's score; for a metric of one length, only documents of that length have one."""
        found = [value for sample in self.samples if not _of_other_length(metric, value := sample.get(metric))]
        return [
            float(item) if isinstance(item, int | float) else float(self.aggregation[metric]([item])) for item in found
        ]

    def to_dict(self) -> dict[str, Any]:
        metrics = {name: {"value": value, "standard_error": error} for name, (value, error) in self.values.items()}
        return {"name": self.name, "documents": len(self.samples), "truncated": self.truncated, "metrics": metrics}


def _of_other_length(metric: str, value: Any) -> bool:
    return metric.isdecimal() and value in (None, _OTHER_LENGTH)


def load_tasks(
    names: Sequence[str],
    artifact: Artifact,
    include_path: Path | None,
    metadata: dict[str, Any],
    seed: int | None = None,
) -> dict[str, Any]:
    """Load lm_eval's tasks by name, group or tag, with their documents.

    Tasks that generate documents, such as RULER's, use ``seed``, and count tokens with the artifact's tokenizer.
    ``include_path`` is a directory with more tasks as YAML files; ``metadata`` are settings that tasks read.
    """
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerFast

    _seed_everything(seed)
    with tempfile.TemporaryDirectory() as folder:
        # Copy the tokenizer without its settings: lm_eval would run code that tokenizer_config.json names.
        PreTrainedTokenizerFast(tokenizer_file=str(artifact.directory / "tokenizer.json")).save_pretrained(folder)
        path = None if include_path is None else str(include_path)
        return _load(TaskManager(include_path=path, metadata={"tokenizer": folder, **metadata}), names, include_path)


def _load(manager: Any, names: Sequence[str], include_path: Path | None) -> dict[str, Any]:
    for name in names:
        if name not in manager.all_tasks:
            where = "" if include_path is None else f" and {include_path}"
            raise LucidError(
                f"lm_eval{where} has no task {name!r}. List the tasks with: lm_eval ls tasks; name a directory "
                "with your own with --include-path."
            )
    try:
        return dict(manager.load(list(names))["tasks"])
    except (OSError, ValueError) as error:  # the data cannot be downloaded, or are not where the task says
        raise LucidError(f"The data of {', '.join(names)} cannot be read: {error}") from error
    except ImportError as error:
        raise LucidError(f"lm_eval's code for {', '.join(names)} does not load here: {error}.") from error


def _seed_everything(seed: int | None) -> int:
    """Seed every random generator as lm_eval does; return the seed for choosing few-shot examples."""
    import torch

    first, other = (0, 1234) if seed is None else (seed, seed)  # lm_eval's defaults
    random.seed(first)
    np.random.seed(other)
    torch.manual_seed(other)
    return other


def ask(
    artifact: Artifact,
    session: Session[Any],
    tasks: dict[str, Any],
    options: HarnessOptions,
    runtime: RuntimeOptions,
    file: str,
    progress: Callable[[str, int, int], None],
) -> list[TaskResult]:
    """Run tasks on an artifact; cache answers in ``options.output``, if set: one ``.db`` file per set of settings."""
    from lucid_deploy.evaluation.lm_eval_adapter import LucidLM

    if options.output is not None:
        owner = [artifact.identity, session.facts(), runtime.ablate, options.truncate, session.context_limit]
        owner.append({name: info["sha256"] for name, info in artifact.manifest.files.items() if "token" in name})
        digest = hashlib.sha256(json.dumps(owner, sort_keys=True).encode()).hexdigest()[:12]
        options = replace(options, answers=options.output / f"{file}-{digest}.db")
    model = LucidLM(artifact, session=session, batch_size=options.batch, truncate=options.truncate, progress=progress)
    return run_tasks(model, tasks, options)


def run_tasks(model: LucidLM, tasks: dict[str, Any], options: HarnessOptions) -> list[TaskResult]:
    """Run a model on lm_eval's ``tasks``, given by name; return its scores in each task."""
    from lm_eval import evaluate
    from lm_eval.api.model import CachingLM
    from lm_eval.utils import handle_non_serializable

    seed = _seed_everything(options.seed)
    for task in tasks.values():
        if options.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=options.gen_kwargs, update=True)
        shots = task.get_config("num_fewshot")
        if options.num_fewshot is not None and shots != 0:  # 0 in a task's file means never
            shots = options.num_fewshot
        task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=seed)
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
    chosen = next((key.partition(",")[2] for key in found if "," in key), "none")  # of several filters, the first
    for key, value in found.items():
        metric, _, filtered = key.partition(",")
        number = isinstance(value, int | float) and not _of_other_length(metric, value)
        if filtered == chosen and not metric.endswith("_stderr") and number:
            error = found.get(f"{metric}_stderr,{filtered}")
            values[metric] = (float(value), float(error) if isinstance(error, int | float) else None)
    cut = {request.doc_id for request in task.instances if model.is_cut(request)}
    mine = sorted((row for row in samples if row.get("filter", chosen) == chosen), key=lambda row: int(row["doc_id"]))
    return TaskResult(name, values, [{**row, "truncated": row["doc_id"] in cut} for row in mine], task.aggregation())


@dataclass(frozen=True)
class Difference:
    """The first model's mean score minus the second's."""

    value: float
    low: float  # bounds of the 95 % confidence interval
    high: float
    documents: int  # number of documents, which both models answered
    better: int  # documents on which the first scores higher
    worse: int  # documents on which the second scores higher


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two models' scores on the same documents, in the same order."""
    return average_difference([(first, second)])


def average_difference(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Difference:
    """Compare two models over several tasks of equal weight; each pair has both models' scores in a task.

    The interval's bounds are percentiles of the means of bootstrap samples, which resample documents within each task.
    If no score differs, the interval has no width.
    """
    random = np.random.default_rng(_SEED)
    tasks = [np.subtract(first, second, dtype=float) for first, second in pairs]
    means = np.mean([_resampled_means(differences, random) for differences in tasks], axis=0)  # (resamples,)
    low, high = np.quantile(means, [0.025, 0.975])
    value = float(np.mean([differences.mean() for differences in tasks]))
    every = np.concatenate(tasks)
    return Difference(value, float(low), float(high), len(every), int((every > 0).sum()), int((every < 0).sum()))


def _resampled_means(differences: Any, random: np.random.Generator) -> Any:
    values, counts = np.unique(differences, return_counts=True)
    count = len(differences)
    return random.multinomial(count, counts / count, size=RESAMPLES) @ values / count


def compare_tasks(first: Sequence[TaskResult], second: Sequence[TaskResult]) -> dict[tuple[str, str], Difference]:
    """Return the first model's scores minus the second's, by task and metric.

    With several tasks, ``("all", "mean")`` is the difference of their mean scores, each by the task's first metric.
    """
    found: dict[tuple[str, str], Difference] = {}
    main = []
    for mine, theirs in zip(first, second, strict=True):
        if [row["arguments"] for row in mine.samples] != [row["arguments"] for row in theirs.samples]:
            raise LucidError(
                f"{mine.name}: the two models were asked different prompts (do their chat templates differ?), so their "
                "scores cannot be paired."
            )
        if not mine.values:
            raise LucidError(f"{mine.name}: lm_eval gives no metric that is a number to compare; leave the task out.")
        pairs = {metric: (mine.scores(metric), theirs.scores(metric)) for metric in mine.values}
        found.update({(mine.name, metric): paired_difference(*pair) for metric, pair in pairs.items()})
        main.append(next(iter(pairs.values())))
    if len(main) > 1:
        found["all", "mean"] = average_difference(main)
    return found


def result_table(title: str, results: Sequence[TaskResult]) -> Table:
    """Return a table of each task's metrics; a star marks values of tasks in which prompts were cut."""
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
    for heading in ("difference", "95 % interval", "documents", "better", "worse"):
        table.add_column(heading, justify="right")
    for (task, metric), item in found.items():
        interval = f"{item.low:+.4f} to {item.high:+.4f}"
        counts = map(str, (item.documents, item.better, item.worse))
        table.add_row(escape(task), escape(metric), f"{item.value:+.4f}", interval, *counts)
    return table


def write_output(folder: Path, facts: dict[str, Any], results: Sequence[TaskResult], samples: bool) -> None:
    """Write ``results.json`` and, if ``samples``, each task's ``samples_NAME.jsonl`` into a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for result in results if samples else ():
            lines = "".join(f"{json.dumps(row)}\n" for row in result.samples)
            atomic_write(folder / f"samples_{result.name}.jsonl", lines.encode())
        atomic_write(folder / "results.json", (json.dumps(facts, indent=2) + "\n").encode())
    except OSError as error:
        raise LucidError(f"{folder} cannot be written: {error.strerror or error}.") from error


def json_object(option: str, text: str | None) -> dict[str, Any]:
    """Parse the JSON object in an option's text; return an empty one if the option is not given."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise LucidError(f"{option} is not JSON: {error}.") from error
    if not isinstance(found, dict):
        raise LucidError(f"{option} takes a JSON object, not {text!r}.")
    return found


def generation_options(text: str | None) -> dict[str, Any]:
    """Parse ``--gen-kwargs``: a JSON object, or ``name=value,name=value`` as lm_eval takes it."""
    from lm_eval.utils import simple_parse_args_string

    if not text or text.lstrip().startswith("{"):
        return json_object("--gen-kwargs", text)
    if not all("=" in item for item in text.split(",")):
        raise LucidError(f"--gen-kwargs takes a JSON object or name=value,name=value, not {text!r}.")
    return dict(simple_parse_args_string(text))
