"""What a closer look found: where an error starts, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from lucid_deploy.parity.causes.localise import ErrorSplit, WorstOwnError
from lucid_deploy.parity.causes.solve_analysis import TOKENS, ErrorShares
from lucid_deploy.parity.measure.perplexity import Perplexity
from lucid_deploy.parity.measure.plain_data import plain


@dataclass(frozen=True)
class Explanation:
    """What a closer look found.

    Attributes:
        scenarios: Token sequences that were looked at; the first is that of the failure, if there was one.
        findings: Every part's largest own error in each of them.
        splits: Own, inherited and total errors of one prefill in each of them.
        shares: Where the errors in Y come from, in the first of them; empty with standard attention.
        hint: What the first own error beyond its gate looks like, in words; empty if there is none.
        unavailable: Why the layers could not be run by themselves; None if they could.
        perplexity: Of the text, if one was given.
    """

    scenarios: tuple[str, ...]
    findings: tuple[WorstOwnError, ...] = ()
    splits: tuple[ErrorSplit, ...] = ()
    shares: tuple[ErrorShares, ...] = ()
    hint: str = ""
    unavailable: str | None = None
    perplexity: Perplexity | None = None

    @property
    def origin(self) -> WorstOwnError | None:
        """The first part, in the order of computation, whose own error is beyond its gate."""
        return min((item for item in self.findings if item.failed), key=lambda item: item.part, default=None)

    def sentence(self, failed: bool) -> str:
        """Say where errors start, in one or two sentences; empty if nothing is wrong and nothing failed.

        Args:
            failed: Whether the verification did.
        """
        origin = self.origin
        if origin is not None:
            verb = "starts" if failed else "would start"
            return (
                f"The error {verb} in {origin.part}: on the reference's own inputs its error is "
                f"{origin.error:.2g}, its gate {origin.gate.limit:.2g} ({origin.feeding}, {origin.scenario}, position "
                f"{origin.position}). {self.hint}"
            )
        if not failed:
            return ""
        if self.unavailable is not None or not self.findings:
            return self.unavailable or ""
        judged = sum(item.judged for item in self.findings)
        every = f"every part that could be judged ({judged} of {len(self.findings)})"
        return (
            f"On the reference's own inputs {every if judged < len(self.findings) else 'every layer'} stays within its "
            "gate. So no layer is wrong by itself: either many small errors add up, or what connects calls (the cache, "
            "masks, positions) is wrong."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; numbers that are not finite are null."""
        origin = self.origin
        return plain(
            {
                "scenarios": self.scenarios,
                "origin": None if origin is None else _finding_dict(origin),
                "hint": self.hint,
                "layers_unavailable": self.unavailable,
                "own_errors": [_finding_dict(item) for item in self.findings],
                "own_and_inherited": [{**asdict(item), "part": str(item.part)} for item in self.splits],
                "error_shares": [{**asdict(item), "excess": item.excess} for item in self.shares],
                "error_shares_tokens": TOKENS,
                "perplexity": None
                if self.perplexity is None
                else {**asdict(self.perplexity), "difference": self.perplexity.difference},
            }
        )


def _finding_dict(item: WorstOwnError) -> dict[str, Any]:
    return {
        "scenario": item.scenario,
        "part": str(item.part),
        "feeding": item.feeding,
        "position": item.position,
        "error": item.error,
        "gate": item.gate.limit,
        "baseline_error": item.gate.baseline,
        "passed": not item.failed,
        "judged": item.judged,
    }
