"""Scores: how many answers are right, how sure that is, and where the wrong ones are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from lucid_deploy.errors import LucidError
from lucid_deploy.evaluation.task import Question, Task

_Z = 1.959964  # of the normal distribution: 95 % lie within


@dataclass(frozen=True)
class Outcome:
    """What a model answered.

    Attributes:
        question: The question.
        given: The generated text, up to where it was stopped.
        right: Whether it begins with exactly the right answer.
    """

    question: Question
    given: str
    right: bool


@dataclass(frozen=True)
class Score:
    """Right answers among several."""

    right: int
    count: int

    @property
    def accuracy(self) -> float:
        """The share of right answers, 0 to 1."""
        return self.right / self.count

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON, with its interval."""
        low, high = wilson(self.right, self.count)
        return {
            "right": self.right,
            "count": self.count,
            "accuracy": round(self.accuracy, 6),
            "interval": [round(low, 6), round(high, 6)],
        }


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion after Wilson (1927), which holds near 0 and 1 too.

    Args:
        right: Successes, 0 to ``count``.
        count: Trials, at least 1.
    """
    share, z2 = right / count, _Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return (0.0 if right == 0 else middle - half), (1.0 if right == count else middle + half)


@dataclass(frozen=True)
class Report:
    """A task, and how a model did.

    Attributes:
        task: The questions.
        runtime: What ran the model.
        dtype: Type of its weights and cache.
        outcomes: One for each question.
    """

    task: Task
    runtime: str
    dtype: str
    outcomes: list[Outcome]

    @property
    def score(self) -> Score:
        """Of all questions."""
        return _score(self.outcomes)

    def by(self, *labels: str) -> dict[tuple[Any, ...], Score]:
        """Return the score for each combination of some labels' values, in ascending order."""
        cells: dict[tuple[Any, ...], list[Outcome]] = {}
        for outcome in self.outcomes:
            cells.setdefault(tuple(outcome.question.labels[label] for label in labels), []).append(outcome)
        return {key: _score(cells[key]) for key in sorted(cells)}

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON: ``table`` has one entry for each row and column, ``wrong`` every wrong answer."""
        labels = [label for label in (self.task.rows, self.task.columns) if label is not None]
        return {
            "task": self.task.name,
            "settings": self.task.settings,
            "runtime": self.runtime,
            "dtype": self.dtype,
            **self.score.to_dict(),
            "table": [
                {**dict(zip(labels, key, strict=True)), **score.to_dict()} for key, score in self.by(*labels).items()
            ],
            "wrong": [
                {
                    "prompt": outcome.question.prompt,
                    **outcome.question.labels,
                    "answer": outcome.question.answer,
                    "given": outcome.given,
                }
                for outcome in self.outcomes
                if not outcome.right
            ],
        }


@dataclass(frozen=True)
class Disagreement:
    """A question that two models answered differently, as far as being right goes or in the wrong answer."""

    prompt: str
    answer: str
    given: str
    given_by_other: str


@dataclass(frozen=True)
class Comparison:
    """Two reports on the same questions.

    Attributes:
        score: Of the first.
        other: Of the second.
        only_right: Questions that only the first answered rightly.
        only_other_right: Questions that only the second answered rightly.
        disagreements: Every question with different answers.
    """

    score: Score
    other: Score
    only_right: int
    only_other_right: int
    disagreements: list[Disagreement]

    @property
    def relative(self) -> float | None:
        """The first's accuracy as a share of the second's; None if the second has none."""
        return self.score.accuracy / self.other.accuracy if self.other.right else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return {
            **self.other.to_dict(),
            "relative_accuracy": None if self.relative is None else round(self.relative, 6),
            "only_right_here": self.only_right,
            "only_right_there": self.only_other_right,
            "disagreements": [asdict(item) for item in self.disagreements],
        }


def compare(report: Report, other: Report) -> Comparison:
    """Compare two models' answers to the same questions.

    Raises:
        LucidError: The questions differ.
    """
    if report.task.questions != other.task.questions:
        raise LucidError("Two reports can be compared only if they are about the same questions.")
    pairs = list(zip(report.outcomes, other.outcomes, strict=True))
    return Comparison(
        report.score,
        other.score,
        sum(mine.right and not theirs.right for mine, theirs in pairs),
        sum(theirs.right and not mine.right for mine, theirs in pairs),
        [
            Disagreement(mine.question.prompt, mine.question.answer, mine.given, theirs.given)
            for mine, theirs in pairs
            if _read(report.task, mine) != _read(other.task, theirs)
        ],
    )


def _read(task: Task, outcome: Outcome) -> str:
    return task.answer_in(outcome.given)


def _score(outcomes: Iterable[Outcome]) -> Score:
    known = list(outcomes)
    return Score(sum(outcome.right for outcome in known), len(known))
