"""Run tasks of lm-evaluation-harness and return its results."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.evaluation.task import TokenizerLike, check_seed
from lucid_deploy.runtimes.session import Session

_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


@dataclass(frozen=True)
class HarnessOptions:
    """How tasks are asked.

    Attributes:
        limit: Documents of each task; None: all.
        batch: Contexts to run at once.
        metadata: As lm_eval gives ``--metadata`` to its tasks.
        gen_kwargs: Generation options instead of the tasks'.
        num_fewshot: Solved examples in each prompt; None: as the tasks say.
        truncate: As :class:`~lucid_deploy.evaluation.lm_eval_adapter.LucidLM` takes it.
        chat: Turns messages into text, with the model's chat template; None: prompts are plain text.
        seed: Of all random numbers that tasks draw; None: lm_eval's own seeds.
    """

    limit: int | None = None
    batch: int = 8
    metadata: dict[str, Any] = field(default_factory=dict)
    gen_kwargs: dict[str, Any] = field(default_factory=dict)
    num_fewshot: int | None = None
    truncate: str | None = None
    chat: Callable[[list[dict[str, str]], bool], str] | None = None
    seed: int | None = None


def run_tasks(
    session: Session[Any],
    tokenizer: TokenizerLike,
    names: list[str],
    include_path: Path | None = None,
    options: HarnessOptions | None = None,
) -> dict[str, Any]:
    """Run tasks by name.

    Args:
        session: What runs the model.
        tokenizer: Of the model.
        names: Of tasks, groups or tags that lm_eval or ``include_path`` define.
        include_path: A directory with more tasks.
        options: How they are asked.

    Returns:
        lm_eval's results, without its record of the machine, in types that JSON has; ``truncated`` says for each task
        how many of its requests were cut.

    Raises:
        LucidError: lm_eval is not installed, a task is unknown, its data cannot be read, or prompts are too long
            and may not be cut.
    """
    options = options or HarnessOptions()
    if options.limit is not None and options.limit < 1:
        raise LucidError(f"The limit must be at least 1 document, not {options.limit}.")
    if options.seed is not None:
        check_seed(options.seed)
    if include_path is not None and not include_path.is_dir():
        raise LucidError(f"There are no tasks at {include_path}: no such directory.")
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import handle_non_serializable
    except ImportError as error:
        raise missing_extra("lm_eval", "eval", "run tasks of lm-evaluation-harness") from error
    from lucid_deploy.evaluation.lm_eval_adapter import LucidLM
    from lucid_deploy.evaluation.lm_eval_run import simple_evaluate

    manager = TaskManager(include_path=None if include_path is None else str(include_path), metadata=options.metadata)
    for name in names:
        if name not in manager.all_tasks:
            where = "" if include_path is None else f" and {include_path}"
            raise LucidError(
                f"lm_eval{where} has no task {name!r}. List the tasks with: lm_eval ls tasks; name a directory "
                "with your own with --include-path."
            )
    model = LucidLM(
        session=session, tokenizer=tokenizer, batch_size=options.batch, truncate=options.truncate, chat=options.chat
    )
    try:
        results = simple_evaluate(
            model=model,
            tasks=list(names),
            task_manager=manager,
            limit=options.limit,
            num_fewshot=options.num_fewshot,
            gen_kwargs=options.gen_kwargs or None,
            apply_chat_template=options.chat is not None,
            log_samples=False,
            bootstrap_iters=1000,
            **({} if options.seed is None else dict.fromkeys(_SEEDS, options.seed)),
        )
    except OSError as error:  # data that cannot be downloaded or is not where the task says
        raise LucidError(f"The data of {', '.join(names)} cannot be read: {error}") from error
    kept = ("results", "groups", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "config")
    facts = {key: results[key] for key in kept if key in results}
    facts["lm_eval"], facts["truncated"] = lm_eval.__version__, dict(model.truncated)
    return dict(json.loads(json.dumps(facts, default=handle_non_serializable)))
