"""Run tasks of lm-evaluation-harness and return its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lucid_deploy.errors import LucidError, missing_extra
from lucid_deploy.evaluation.task import TokenizerLike
from lucid_deploy.runtimes.session import Session


def run_tasks(
    session: Session[Any],
    tokenizer: TokenizerLike,
    names: list[str],
    include_path: Path | None = None,
    limit: int | None = None,
    batch: int = 8,
) -> dict[str, Any]:
    """Run tasks by name.

    Args:
        session: What runs the model.
        tokenizer: Of the model.
        names: Of tasks, groups or tags that lm_eval or ``include_path`` define.
        include_path: A directory with more tasks.
        limit: Documents of each task; None: all.
        batch: Contexts to run at once.

    Returns:
        lm_eval's results, without its record of the machine, in types that JSON has.

    Raises:
        LucidError: lm_eval is not installed, a task is unknown, or its data cannot be read.
    """
    if limit is not None and limit < 1:
        raise LucidError(f"The limit must be at least 1 document, not {limit}.")
    if include_path is not None and not include_path.is_dir():
        raise LucidError(f"There are no tasks at {include_path}: no such directory.")
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import handle_non_serializable
    except ImportError as error:
        raise missing_extra("lm_eval", "eval", "run tasks of lm-evaluation-harness") from error
    from lucid_deploy.evaluation.lm_eval_adapter import LucidLM

    manager = TaskManager(include_path=str(include_path) if include_path is not None else None)
    for name in names:
        if name not in manager.all_tasks:
            where = "" if include_path is None else f" and {include_path}"
            raise LucidError(
                f"lm_eval{where} has no task {name!r}. List the tasks with: lm_eval ls tasks; name a directory "
                "with your own with --include-path."
            )
    model = LucidLM(session=session, tokenizer=tokenizer, batch_size=batch)
    try:
        results = lm_eval.simple_evaluate(
            model=model,
            tasks=list(names),
            task_manager=manager,
            limit=limit,
            log_samples=False,
            bootstrap_iters=1000,
        )
    except OSError as error:  # data that cannot be downloaded or is not where the task says
        raise LucidError(f"The data of {', '.join(names)} cannot be read: {error}") from error
    assert results is not None  # None in other processes than the first, of which there are none
    kept = ("results", "groups", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "config")
    facts = {key: results[key] for key in kept if key in results}
    facts["lm_eval"] = lm_eval.__version__
    return dict(json.loads(json.dumps(facts, default=handle_non_serializable)))
