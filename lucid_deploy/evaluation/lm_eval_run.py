"""lm_eval's own evaluation, without what only costs time here."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch


def simple_evaluate(**arguments: Any) -> dict[str, Any]:
    """Call ``lm_eval.simple_evaluate``; see there.

    It would list the machine's packages for a record that is not kept and read all of its tasks' files (seconds each),
    show a bar for each task while prompts are put together, and ask git for a commit, which complains where there is no
    repository. Tasks by name need a ``task_manager``.
    """
    import lm_eval.api.task
    import lm_eval.evaluator
    from lm_eval.tasks import TaskManager

    manager = arguments.pop("task_manager", None) or TaskManager(include_defaults=False)
    with (
        patch.object(lm_eval.evaluator, "add_env_info", lambda _results: None),
        patch.object(lm_eval.evaluator, "get_git_commit_hash", lambda: None),
        patch.object(lm_eval.api.task, "tqdm", lambda documents, **_options: documents),
    ):
        results = lm_eval.simple_evaluate(task_manager=manager, **arguments)
    assert results is not None  # None in other processes than the first, of which there are none
    return dict(results)
