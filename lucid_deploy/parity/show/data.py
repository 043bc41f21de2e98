"""Comparisons as plain data for JSON; numbers that are not finite are null."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lucid_deploy.parity.measure.coverage import Coverage
from lucid_deploy.parity.measure.gate import Comparison
from lucid_deploy.parity.measure.measurement import OWN_MODEL, Measurement
from lucid_deploy.parity.measure.metrics import Divergence
from lucid_deploy.parity.measure.plain_data import plain


def comparison_dict(comparison: Comparison) -> dict[str, Any]:
    """Return one comparison. ``passed`` is null where nothing was judged."""
    trend, logits = comparison.growth, comparison.logits
    numbers = {} if logits is None else {key: value for key, value in asdict(logits).items() if key != "divergences"}
    return {
        "scenario": comparison.scenario,
        "schedule": comparison.schedule,
        "against": comparison.against or OWN_MODEL.kind,
        "tensor": str(comparison.tensor),
        "layer": None if comparison.tensor.is_logits else comparison.tensor.layer,
        "passed": comparison.failed_at is None if comparison.judged else None,
        "outcome": comparison.outcome,
        "judged": comparison.judged,
        "blind_positions": comparison.blind_positions,
        "failed_at": comparison.failed_at,
        "error": plain(comparison.error),
        "gate": comparison.gate.limit,
        "gate_derived": comparison.gate.limit if comparison.gate.derived is None else comparison.gate.derived,
        "baseline_error": comparison.gate.baseline,
        **plain(asdict(comparison.metrics)),
        "growth": None if trend is None else plain(asdict(trend)),
        "logits": None if logits is None else plain(numbers),
    }


def divergence_class(comparison: Comparison, item: Divergence) -> str:
    """Return ``near-tie``, ``real``, or ``not judged`` where the gate would let any token pass."""
    if not comparison.judged:
        return "not judged"
    return "near-tie" if item.near_tie else "real"


def divergence_dict(comparison: Comparison, item: Divergence) -> dict[str, Any]:
    """Return one position at which another token is preferred."""
    against = comparison.against or OWN_MODEL.kind
    where = {"scenario": comparison.scenario, "schedule": comparison.schedule, "against": against}
    return {**where, "class": divergence_class(comparison, item), **plain(asdict(item))}


def curve_dict(item: Comparison) -> dict[str, Any]:
    """Return the error of every position of one comparison."""
    return {
        "tensor": str(item.tensor),
        "scenario": item.scenario,
        "schedule": item.schedule,
        "start": item.start,
        "errors": plain(item.errors.tolist()),
    }


def coverage_dict(found: Measurement) -> dict[str, Any]:
    """Return how much was judged, and against what."""
    each = found.coverage_by_reference()
    return {
        **_counts(found.coverage),
        "reference": asdict(found.reference),
        "references": [{**asdict(reference), **_counts(coverage)} for reference, coverage in each],
    }


def _counts(coverage: Coverage) -> dict[str, int]:
    return {**asdict(coverage), "unjudged": coverage.unjudged}
