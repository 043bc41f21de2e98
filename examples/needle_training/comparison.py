"""Scores of pairs of models, LUCID and standard attention, by task and length, with their intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from lucid_deploy.evaluation import Report
from lucid_deploy.evaluation.paired import Difference, average_difference, paired_difference
from lucid_deploy.evaluation.report import Score
from needle_training.questions import values_found

Pair = tuple[Report, Report]  # LUCID, standard


@dataclass(frozen=True)
class Cell:
    """One task at one length, asked of the models of every pair."""

    task: str  # one of the five
    length: int  # tokens of a prompt
    pairs: list[Pair]  # reports of each pair, on the same questions

    def score(self, which: int) -> Score:
        """Return the right answers of all pairs: of LUCID (0) or standard attention (1)."""
        scores = [pair[which].score for pair in self.pairs]
        return Score(sum(score.right for score in scores), sum(score.count for score in scores))

    def differences(self) -> list[Difference]:
        """Return each pair's difference in right answers, LUCID's less standard attention's."""
        return [paired_difference(*scores) for scores in self._right()]

    def difference(self) -> Difference:
        """Return the mean of the pairs' differences, with its interval."""
        return average_difference(self._right())

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON. ``values_found`` is RULER's score."""
        shares = [(values_found(lucid), values_found(standard)) for lucid, standard in self.pairs]
        return {
            "task": self.task,
            "length": self.length,
            "lucid": self.score(0).to_dict(),
            "standard": self.score(1).to_dict(),
            "difference": asdict(self.difference()),
            "values_found": {
                "lucid": _mean(shares, 0),
                "standard": _mean(shares, 1),
                "difference": asdict(average_difference(shares)),
            },
            "pairs": [
                {"lucid": lucid.score.to_dict(), "standard": standard.score.to_dict(), "difference": asdict(part)}
                for (lucid, standard), part in zip(self.pairs, self.differences(), strict=True)
            ],
        }

    def _right(self) -> list[tuple[list[float], list[float]]]:
        return [(_right(lucid), _right(standard)) for lucid, standard in self.pairs]


def comparison_table(cells: list[Cell]) -> Table:
    """Return the cells for people."""
    table = Table("task", title="Right answers; differences are LUCID's less standard attention's, in points")
    for heading in ("length", "LUCID", "95 %", "standard", "95 %", "difference", "95 %", "each pair"):
        table.add_column(heading, justify="right")
    for cell in cells:
        whole = cell.difference()
        parts = ", ".join(f"{100 * part.value:+.0f}" for part in cell.differences())
        scores = [text for which in (0, 1) for text in _percent(cell.score(which))]
        interval = f"{100 * whole.low:+.1f} to {100 * whole.high:+.1f}"
        table.add_row(cell.task, str(cell.length), *scores, f"{100 * whole.value:+.1f}", interval, parts)
    return table


def _percent(score: Score) -> tuple[str, str]:
    low, high = score.to_dict()["interval"]
    return f"{score.accuracy:.1%}", f"{100 * low:.1f} to {100 * high:.1f}"


def _right(report: Report) -> list[float]:
    return [float(outcome.right) for outcome in report.outcomes]


def _mean(shares: list[tuple[list[float], list[float]]], which: int) -> float:
    """Return the mean over pairs of the mean over questions."""
    return round(sum(sum(pair[which]) / len(pair[which]) for pair in shares) / len(shares), 6)
