"""Explain a result: where an error starts, what the solve adds to it, and what it costs in perplexity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lucid_deploy.parity.causes.localise import (
    ErrorSplit,
    OwnErrors,
    ReferenceStates,
    WorstOwnError,
    calls,
    findings,
    look_inside,
    own_errors,
    own_gates,
    splits,
)
from lucid_deploy.parity.causes.suspects import hint
from lucid_deploy.parity.perplexity import Perplexity, perplexity, session_logits, surprisals, windows
from lucid_deploy.parity.targets import CallCounter, Progress, Target
from lucid_deploy.runtimes.layers import Layers, NewTokens, ScoringLayers
from lucid_deploy.runtimes.session import Array, Session

Opener = Callable[[], ScoringLayers]


@dataclass(frozen=True)
class Explanation:
    """Where an error starts, and why.

    Attributes:
        scenarios: Token sequences that were run again; the first is that of the failure, if there was one.
        findings: Every part's largest own error in each of them.
        splits: Own, inherited and total errors of one prefill in each of them.
        hint: A likely reason for the first own error beyond its gate; empty if there is none.
        unavailable: Why the layers could not be run by themselves; None if they could.
        perplexity: Of the text, if one was given.
    """

    scenarios: tuple[str, ...]
    findings: tuple[WorstOwnError, ...] = ()
    splits: tuple[ErrorSplit, ...] = ()
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
        """Return plain data for JSON."""
        origin, scores = self.origin, self.perplexity
        return {
            "scenarios": self.scenarios,
            "origin": None if origin is None else _finding_dict(origin),
            "hint": self.hint,
            "layers_unavailable": self.unavailable,
            "own_errors": [_finding_dict(item) for item in self.findings],
            "own_and_inherited": [{**asdict(item), "part": str(item.part)} for item in self.splits],
            "perplexity": None if scores is None else {**asdict(scores), "difference": scores.difference},
        }


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


def explain(
    targets: Sequence[Target],
    session: Session[Any],
    layers: Layers | None,
    baseline: Opener,
    reference: Opener,
    *,
    unavailable: str | None = None,
    tolerance: float | None = None,
    text: Array | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Find where an error starts. The reference, the baseline and the candidate's layers run one after the other.

    Args:
        targets: The scenarios to run, the most important first.
        session: The candidate; its perplexity is taken.
        layers: The candidate's layers; None where they cannot be run by themselves.
        baseline: Opens PyTorch in the candidate's precision; sets the gates of own errors.
        reference: Opens PyTorch in float64.
        unavailable: Why there are no layers.
        tolerance: Gate set by hand, which replaces the derived ones.
        text: Token ids to take the perplexity of.
        progress: Called with (phase, calls done, calls in all).
    """
    scenarios = tuple(target.scenario.name for target in targets)
    pieces = [] if text is None else windows(text, session.config.max_position_embeddings)
    inside, true_text = _reference(reference, targets if layers else (), pieces, progress)
    base, base_text = _baseline(baseline, inside, pieces, progress)
    scores = None
    if pieces:
        meter = CallCounter(progress, f"Perplexity in {session.runtime}", len(pieces))
        candidate_text = surprisals(session_logits(session), pieces, meter.tick)
        scores = perplexity(true_text, base_text, candidate_text, max(map(len, pieces)))
    if layers is None:
        return Explanation(scenarios, unavailable=unavailable, perplexity=scores)
    return _candidate(layers, inside, base, tolerance, scores, progress)


def _reference(
    opener: Opener, targets: Sequence[Target], pieces: list[Array], progress: Progress | None
) -> tuple[list[ReferenceStates], Array]:
    if not targets and not pieces:
        return [], np.zeros(0)
    model = opener()
    meter = CallCounter(progress, "Causes: the reference's layers", len(targets) + len(pieces))
    inside = []
    for target in targets:
        inside.append(look_inside(model, target.scenario, target.reference))
        meter.tick()
    return inside, surprisals(model.logits, pieces, meter.tick)


def _baseline(
    opener: Opener, inside: list[ReferenceStates], pieces: list[Array], progress: Progress | None
) -> tuple[list[OwnErrors], Array]:
    if not inside and not pieces:
        return [], np.zeros(0)
    model = opener()
    total = sum(calls(item.scenario) for item in inside) + len(pieces)
    meter = CallCounter(progress, f"Causes: PyTorch's layers in {model.dtype}", total)
    own = [own_errors(model, item, meter.tick) for item in inside]
    return own, surprisals(model.logits, pieces, meter.tick)


def _candidate(
    layers: Layers,
    inside: list[ReferenceStates],
    base: list[OwnErrors],
    tolerance: float | None,
    scores: Perplexity | None,
    progress: Progress | None,
) -> Explanation:
    total = sum(calls(item.scenario) + 2 for item in inside)
    meter = CallCounter(progress, "Causes: the artifact's layers", total)
    found: list[list[WorstOwnError]] = []
    gaps: list[ErrorSplit] = []
    for item, own in zip(inside, base, strict=True):
        gates = own_gates(own, layers.dtype, tolerance)
        found.append(findings(own_errors(layers, item, meter.tick), gates, item.scenario.name))
        tokens = NewTokens.after(item.ids)
        given = layers.run(tokens, layers.empty_past(), item.residuals(slice(None)))
        full = layers.run(tokens, layers.empty_past())
        meter.tick()
        meter.tick()
        gaps += splits(full, given, item)
    failed = [(index, item) for index, items in enumerate(found) for item in items if item.failed]
    words = ""
    if failed:
        where = min(failed, key=lambda pair: pair[1].part)[0]
        items = [item for item in found[where] if item.failed]
        words = hint(
            layers,
            inside[where],
            items,
            CallCounter(progress, "Causes: trying guesses", calls(inside[where].scenario)).tick,
        )
    return Explanation(
        tuple(item.scenario.name for item in inside),
        tuple(item for items in found for item in items),
        tuple(gaps),
        words,
        perplexity=scores,
    )
