"""How much of a verification was judged: a gate that lets every answer pass tests nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lucid_deploy.model.scenarios import SCHEDULES
from lucid_deploy.parity.measure.compare import TensorId
from lucid_deploy.parity.measure.gate import Comparison

FREE_RUNNING = "free-running"  # name of the schedule in which the candidate's own tokens are fed back


@dataclass(frozen=True)
class Coverage:
    """What of all comparisons could have failed.

    Attributes:
        total: Comparisons made.
        judged: Those that an answer of zeros would have failed, and those that did fail.
        blind_positions: Positions, of all comparisons that were judged, at which zeros would have passed: rows that are
            next to nothing beside the rows before them.
        positions: Positions of all comparisons that were judged.
    """

    total: int
    judged: int
    blind_positions: int
    positions: int

    @classmethod
    def of(cls, comparisons: Sequence[Comparison]) -> Coverage:
        """Count."""
        judged = [item for item in comparisons if item.judged]
        blind, positions = sum(item.blind_positions for item in judged), sum(len(item.errors) for item in judged)
        return cls(len(comparisons), len(judged), blind, positions)

    @property
    def unjudged(self) -> int:
        """Comparisons that could not fail."""
        return self.total - self.judged


def unproven(comparisons: Iterable[Comparison]) -> tuple[TensorId, ...]:
    """Return the tensors that were not judged in any scenario of some schedule: passing there proves nothing.

    Each reference counts for itself. What one scenario alone is run in does not count: generating freely, and turns.
    """
    single = {FREE_RUNNING, *(schedule.name for schedule in SCHEDULES if schedule.greedy_only)}
    best: dict[tuple[TensorId, str, str], bool] = {}
    for item in comparisons:
        if item.schedule not in single:
            key = (item.tensor, item.schedule, item.against)
            best[key] = best.get(key, False) or item.judged
    return tuple(sorted({tensor for (tensor, _, _), judged in best.items() if not judged}))
