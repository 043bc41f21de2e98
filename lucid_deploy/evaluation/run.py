"""Put a task's questions to a model and read its answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lucid_deploy.evaluation.greedy import generate
from lucid_deploy.evaluation.report import Outcome, Report
from lucid_deploy.evaluation.task import Question, Task, TokenizerLike
from lucid_deploy.runtimes.session import Session

SPARE = 4  # tokens beyond the right answer, so that one that is too long shows


def evaluate(
    session: Session[Any],
    tokenizer: TokenizerLike,
    task: Task,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Answer every question greedily and score the answers.

    Args:
        session: What runs the model.
        tokenizer: Of the model.
        task: The questions.
        batch: Most contexts to run at once.
        progress: Called with (questions done, questions in all).

    Raises:
        LucidError: A question does not fit in the model's context.
        CheckFailed: The model gave logits that are not finite.
    """
    groups: dict[int, list[Question]] = {}
    for question in task.questions:
        groups.setdefault(question.context, []).append(question)
    prompts = [[tokenizer.encode(question.prompt) for question in group] for group in groups.values()]
    longest = max(len(tokenizer.encode(question.answer, add_special_tokens=False)) for question in task.questions)
    answers = generate(session, prompts, longest + SPARE, batch, progress=progress)
    outcomes = []
    for group, rows in zip(groups.values(), answers, strict=True):
        for question, row in zip(group, rows, strict=True):
            text = tokenizer.decode(row)
            outcomes.append(Outcome(question, text, task.answer_in(text) == question.answer))
    return Report(task, session.label, session.dtype, outcomes)
