"""Run a suite on a session through lm_eval, and keep what every document scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.answer_log import AnswerLog
from lucid_deploy.evaluation.suites.settings import SEED, SuiteTask
from lucid_deploy.evaluation.suites.tasks import TaskMaker
from lucid_deploy.evaluation.task import TokenizerLike, can_write, check_seed
from lucid_deploy.runtimes.session import Session

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class SuiteOptions:
    """How a suite is asked.

    Attributes:
        limit: Documents of each task; None: all.
        batch: Contexts to run at once.
        num_fewshot: Solved examples in each prompt; None: as the task says.
        gen_kwargs: Generation options instead of the task's.
        truncate: As :class:`~lucid_deploy.evaluation.lm_eval_adapter.LucidLM` takes it.
        chat: Turns messages into text, with the model's chat template; None: prompts are plain text.
        seed: Of lm_eval's random numbers.
    """

    limit: int | None = None
    batch: int = 8
    num_fewshot: int | None = None
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    truncate: str | None = None
    chat: Callable[[list[dict[str, str]], bool], str] | None = None
    seed: int = SEED


@dataclass(frozen=True)
class TaskResult:
    """What a model scored in one task.

    Attributes:
        task: Which.
        values: By metric, lm_eval's value over all documents and its standard error, None where lm_eval has none.
        scores: By metric, what each document scored by itself.
        truncated: For each document, whether its prompt was cut.
        samples: lm_eval's record of each document, in JSON's types.
    """

    task: SuiteTask
    values: dict[str, tuple[float, float | None]]
    scores: dict[str, list[float]]
    truncated: list[bool]
    samples: list[dict[str, Any]]

    @property
    def prompts(self) -> list[Any]:
        """What was asked: for each document its requests' arguments."""
        return [sample["arguments"] for sample in self.samples]

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON, the samples left out."""
        return {
            "name": self.task.name,
            "task": self.task.task,
            "length": self.task.length,
            "needles": self.task.needles,
            "documents": len(self.samples),
            "truncated": sum(self.truncated),
            "metrics": {
                name: {"value": value, "standard_error": error} for name, (value, error) in self.values.items()
            },
        }


def run_suite(
    session: Session[Any],
    tokenizer: TokenizerLike,
    tasks: Sequence[SuiteTask],
    maker: TaskMaker,
    options: SuiteOptions,
    answers: AnswerLog | None = None,
    progress: Progress | None = None,
) -> list[TaskResult]:
    """Ask a model all documents of some tasks.

    Args:
        session: What runs the model.
        tokenizer: Of the model.
        tasks: From :func:`~lucid_deploy.evaluation.suites.settings.plan`.
        maker: Makes lm_eval's tasks of them.
        options: How they are asked.
        answers: Where answers are kept, so that the run can be stopped and gone on with.
        progress: Called with (what is done, done, in all).

    Raises:
        LucidError: Documents cannot be had, or prompts are too long and may not be cut.
        CheckFailed: The model gave logits that are not finite.
    """
    _check(session, tasks, options)
    made = {}
    for number, task in enumerate(tasks):
        if progress is not None:
            progress("Making the documents", number, len(tasks))
        made[task.name] = maker.make(task, options.limit)
        _check_words(task, made[task.name], tokenizer)
    from lucid_deploy.evaluation.lm_eval_adapter import LucidLM
    from lucid_deploy.evaluation.lm_eval_run import simple_evaluate

    model = LucidLM(
        session=session,
        tokenizer=tokenizer,
        batch_size=options.batch,
        truncate=options.truncate,
        progress=progress,
        answers=answers,
        chat=options.chat,
    )
    results = simple_evaluate(
        model=model,
        tasks=list(made.values()),
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        gen_kwargs=options.gen_kwargs or None,
        apply_chat_template=options.chat is not None,
        log_samples=True,
        bootstrap_iters=1000,
        random_seed=options.seed,
        numpy_random_seed=options.seed,
        torch_random_seed=options.seed,
        fewshot_random_seed=options.seed,
    )
    return [_result(task, made[task.name], results, model) for task in tasks]


def _check(session: Session[Any], tasks: Sequence[SuiteTask], options: SuiteOptions) -> None:
    if options.limit is not None and options.limit < 1:
        raise LucidError(f"The limit must be at least 1 document, not {options.limit}.")
    if any(task.suite == "scrolls" for task in tasks):
        if options.gen_kwargs:
            raise LucidError("lm_eval's tasks of SCROLLS take no generation options: leave --gen-kwargs out.")
        if options.num_fewshot:
            raise LucidError("lm_eval's tasks of SCROLLS take no solved examples: leave --num-fewshot out.")
    check_seed(options.seed)
    most = session.context_limit  # None: --allow-extrapolation
    long = [task for task in tasks if most is not None and isinstance(task.length, int) and task.length > most]
    if long and options.truncate is None:
        raise LucidError(
            f"{long[0].name} asks for {long[0].length} tokens, and the model's context is {most}: choose --lengths, "
            "or cut the prompts with --truncate."
        )


def _check_words(task: SuiteTask, made: Any, tokenizer: TokenizerLike) -> None:
    """Refuse prompts that reach the model as unknown words: the score would say nothing."""
    text = str(made.doc_to_text(made.eval_docs[0]))
    if text.isascii() and not can_write(tokenizer, text):
        raise LucidError(
            f"This model's tokenizer cannot write the texts of {task.name}. Suites ask in English; the bundled model "
            "is asked with --task recall or needles."
        )


def _result(task: SuiteTask, made: Any, results: Any, model: Any) -> TaskResult:
    from lm_eval.utils import handle_non_serializable

    values: dict[str, tuple[float, float | None]] = {}
    for key, value in results["results"][task.name].items():
        metric, _, filtered = key.partition(",")
        if filtered and not metric.endswith("_stderr"):
            error = results["results"][task.name].get(f"{metric}_stderr,{filtered}")
            values[metric] = (float(value), float(error) if isinstance(error, int | float) else None)
    samples = sorted(results["samples"][task.name], key=lambda sample: int(sample["doc_id"]))
    whole = made.aggregation()
    scores = {metric: [_alone(sample[metric], whole[metric]) for sample in samples] for metric in values}
    long = {request.doc_id for request in made.instances if not model.fit(request).fits}
    plain = json.loads(json.dumps(samples, default=handle_non_serializable))
    return TaskResult(task, values, scores, [sample["doc_id"] in long for sample in samples], plain)


def _alone(item: Any, aggregate: Callable[[list[Any]], float]) -> float:
    """Return what one document scores: a number, or what lm_eval makes of its answer and the right ones."""
    return float(item) if isinstance(item, int | float) else float(aggregate([item]))
