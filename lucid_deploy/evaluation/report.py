"""Answer a task's questions, score the answers, and compare two models on the same questions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.evaluation.batched import generate
from lucid_deploy.evaluation.needles import SPARE
from lucid_deploy.evaluation.task import Question, Task, TokenizerLike
from lucid_deploy.runtimes.session import Session

if TYPE_CHECKING:
    from rich.table import Table

_ROWS = 8  # most rows of a table without Task.columns; if Task.rows has more values, a row covers a range of them
_Z = statistics.NormalDist().inv_cdf(0.975)  # 95 % of a normal distribution lie within ±_Z


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a proportion after Wilson (1927), which is valid near 0 and 1 too."""
    share, z2 = right / count, _Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return (0.0 if right == 0 else middle - half), (1.0 if right == count else middle + half)


@dataclass(frozen=True)
class Outcome:
    """A model's answer to a question."""

    question: Question
    given: str  # the generated text
    right: bool  # whether the answer extracted from it is exactly the right one


@dataclass(frozen=True)
class Score:
    """The number of right answers among ``count``."""

    right: int
    count: int

    @property
    def accuracy(self) -> float:
        """The share of right answers, 0 to 1."""
        return self.right / self.count

    def to_dict(self) -> dict[str, Any]:
        interval = [round(bound, 6) for bound in wilson(self.right, self.count)]
        accuracy = round(self.accuracy, 6)
        return {"right": self.right, "count": self.count, "accuracy": accuracy, "interval": interval}

    def __str__(self) -> str:
        low, high = wilson(self.right, self.count)
        interval = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
        return f"{self.right} of {self.count} right, {self.accuracy:.1%} ({interval})"


@dataclass(frozen=True)
class Report:
    """A model's answers to a task."""

    task: Task
    runtime: str  # label of the session that ran the model
    dtype: str  # type of its arithmetic and unquantized weights
    outcomes: list[Outcome]  # one for each question

    @property
    def score(self) -> Score:
        return _score(self.outcomes)

    def by(self, *labels: str) -> dict[tuple[Any, ...], Score]:
        """Return the score for each combination of the labels' values, in ascending order."""
        cells: dict[tuple[Any, ...], list[Outcome]] = {}
        for outcome in self.outcomes:
            cells.setdefault(tuple(outcome.question.labels[label] for label in labels), []).append(outcome)
        return {key: _score(cells[key]) for key in sorted(cells)}

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON: ``table`` has an entry for each row and column, ``wrong`` all wrong answers."""
        labels = [label for label in (self.task.rows, self.task.columns) if label is not None]
        cells = self.by(*labels).items()
        return {
            "task": self.task.name,
            "settings": self.task.settings,
            "runtime": self.runtime,
            "dtype": self.dtype,
            **self.score.to_dict(),
            "table": [{**dict(zip(labels, key, strict=True)), **score.to_dict()} for key, score in cells],
            "wrong": [
                {"prompt": q.prompt, **q.labels, "answer": q.answer, "given": outcome.given}
                for outcome in self.outcomes
                if not outcome.right and (q := outcome.question)
            ],
        }

    def table(self) -> Table:
        """Return a table of accuracies by rows and columns; without columns, it has confidence intervals instead."""
        from rich.table import Table

        rows, columns = self.task.rows, self.task.columns
        title = f"{self.task.name}: right answers by {rows}"
        if columns is not None:
            cells, whole = self.by(rows, columns), self.by(columns)
            table = Table(rows, title=f"{title} and {columns}")
            for (column,) in whole:
                table.add_column(str(column), justify="right")
            for (row,) in self.by(rows):
                scores = [cells.get((row, column)) for (column,) in whole]
                table.add_row(str(row), *("" if score is None else f"{score.accuracy:.1%}" for score in scores))
            table.add_section()
            table.add_row("all", *(f"{score.accuracy:.1%}" for score in whole.values()))
            return table
        single = list(self.by(rows).items())
        size = -(-len(single) // _ROWS)
        table = Table(rows, title=title)
        for heading in ("right", "of", "accuracy", "95 % interval"):
            table.add_column(heading, justify="right")
        for start in range(0, len(single), size):
            group = single[start : start + size]
            right, count = sum(score.right for _, score in group), sum(score.count for _, score in group)
            low, high = wilson(right, count)
            (first,), (last,) = group[0][0], group[-1][0]
            label = str(first) if len(group) == 1 else f"{first} to {last}"
            table.add_row(label, str(right), str(count), f"{right / count:.1%}", f"{100 * low:.1f} to {100 * high:.1f}")
        return table


def evaluate(
    session: Session[Any],
    tokenizer: TokenizerLike,
    task: Task,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Answer every question greedily and score the answers; ``progress`` is called with (questions done, total)."""
    groups: dict[int, list[Question]] = {}
    for question in task.questions:
        groups.setdefault(question.context, []).append(question)
    prompts = [[tokenizer.encode(question.prompt) for question in group] for group in groups.values()]
    longest = max(len(tokenizer.encode(question.answer, add_special_tokens=False)) for question in task.questions)
    texts: dict[tuple[int, int], str] = {}
    for group, place, ids in generate(session, prompts, longest + SPARE, batch):
        texts[group, place] = tokenizer.decode(ids)
        if progress is not None:
            progress(len(texts), len(task.questions))
    questions = [question for asked in groups.values() for question in asked]
    outcomes = [
        Outcome(question, text, task.answer_in(text) == question.answer)
        for question, (_, text) in zip(questions, sorted(texts.items()), strict=True)
    ]
    return Report(task, session.label, session.dtype, outcomes)


@dataclass(frozen=True)
class Comparison:
    """Two reports on the same questions."""

    score: Score  # of the first report
    other: Score  # of the second report
    only_right: int  # questions that only the first answered correctly
    only_other_right: int  # questions that only the second answered correctly
    disagreements: list[dict[str, str]]  # every question with different answers: prompt, answer, given, given_by_other

    @property
    def relative(self) -> float | None:
        """The first's accuracy as a share of the second's; None if the second has no right answer."""
        return self.score.accuracy / self.other.accuracy if self.other.right else None

    def to_dict(self) -> dict[str, Any]:
        return {
            **self.other.to_dict(),
            "relative_accuracy": None if self.relative is None else round(self.relative, 6),
            "only_right_here": self.only_right,
            "only_right_there": self.only_other_right,
            "disagreements": self.disagreements,
        }


def compare(report: Report, other: Report) -> Comparison:
    """Compare two models' answers to the same questions."""
    if report.task.questions != other.task.questions:
        raise LucidError("Two reports can be compared only if they are about the same questions.")
    read, pairs = report.task.answer_in, list(zip(report.outcomes, other.outcomes, strict=True))
    disagreements = [
        {"prompt": q.prompt, "answer": q.answer, "given": mine.given, "given_by_other": theirs.given}
        for mine, theirs in pairs
        if read(mine.given) != read(theirs.given) and (q := mine.question)
    ]
    return Comparison(
        report.score,
        other.score,
        sum(mine.right and not theirs.right for mine, theirs in pairs),
        sum(theirs.right and not mine.right for mine, theirs in pairs),
        disagreements,
    )


def summary(report: Report, numbers: str, comparison: Comparison | None = None, other: str = "") -> list[str]:
    """Return the scores as lines for a terminal; ``numbers`` describes the types, ``other`` is the other artifact."""
    lines = [f"{report.task.name}: {report.score}; {report.runtime}, {numbers}"]
    if comparison is not None:
        relative = "" if comparison.relative is None else f", relative accuracy {comparison.relative:.2%}"
        lines.append(
            f"against {other}: {comparison.other}{relative}; right only here {comparison.only_right}, only there "
            f"{comparison.only_other_right}; {len(comparison.disagreements)} answers differ"
        )
        for item in comparison.disagreements[:10]:
            prompt, answer, here, there = item.values()
            prompt = prompt if len(prompt) <= 60 else "… " + prompt[-58:]
            lines.append(f"  {prompt!r}: {answer!r} expected, {here!r} here, {there!r} there")
    return lines


def require(report: Report, comparison: Comparison | None, minimum: float | None, relative: float | None) -> None:
    """Raise CheckFailed if the accuracy is below ``minimum`` or ``relative`` times the other's, or the other's is 0."""
    score = report.score
    if minimum is not None and score.accuracy < minimum:
        raise CheckFailed(
            f"{score.right} of {score.count} answers are right, {score.accuracy:.2%}; --minimum asks for {minimum:.2%}."
        )
    if relative is None or comparison is None:
        return
    if comparison.relative is None:
        raise CheckFailed("The other artifact has no right answer at all, so there is nothing to compare with.")
    if comparison.relative < relative:
        raise CheckFailed(
            f"The accuracy is {comparison.relative:.2%} of the other artifact's ({score.right} against "
            f"{comparison.other.right} of {score.count} right); --minimum-relative asks for {relative:.2%}."
        )


def _score(outcomes: Iterable[Outcome]) -> Score:
    known = list(outcomes)
    return Score(sum(outcome.right for outcome in known), len(known))
