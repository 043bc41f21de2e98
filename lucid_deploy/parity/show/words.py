"""What a comparison gave, in sentences: for the terminal, the page and error messages alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lucid_deploy.parity.causes.conditioning import NORM_BOUND, HeadStats
from lucid_deploy.parity.measure.gate import Comparison
from lucid_deploy.parity.measure.growth import ErrorGrowth
from lucid_deploy.parity.measure.measurement import FreeRun, Measurement
from lucid_deploy.parity.measure.perplexity import Perplexity


def coverage_line(found: Measurement) -> str:
    """Say how much was judged, and against what."""
    parts = [
        f"{coverage.judged:,} of {coverage.total:,} {'comparisons ' if index == 0 else ''}against {reference.words}"
        for index, (reference, coverage) in enumerate(found.coverage_by_reference())
    ]
    words = f"Judged {', and '.join(parts)}."
    return words if not found.left_out else f"{words} Parts of a whole verification were left out."


def outside_lines(found: Measurement) -> Iterator[str]:
    """Say how far the candidate is from each reference that others wrote."""
    for reference in found.outside:
        items = [item for item in found.against(reference.kind) if item.judged]
        if items:
            worst = max(items, key=lambda item: item.severity)
            yield (
                f"Against {reference.words}: the worst error is {worst.metrics.worst_position_error:.2g} in "
                f"{worst.tensor} ({worst.scenario}, {worst.schedule}), {worst.severity:.2f} of its gate of "
                f"{worst.gate.limit:.2g}."
            )


def verdict(found: Measurement, failed_before: str = "") -> str:
    """Return the result as a sentence or two; of a failure, the first layer, tensor and position.

    Args:
        found: What the comparison gave.
        failed_before: What a check before it found wrong; empty: nothing.
    """
    before = f"What was compared is within its gates, and yet {failed_before}" if failed_before else ""
    return _tolerance_note(found) + (_failure(found) or _unproven(found) or before or _success(found))


def advice(found: Measurement) -> str:
    """Say what to do about a failure; empty if no gate failed."""
    if found.failure is None:
        return ""
    if found.own_failure is None:
        return (
            "What to do: the artifact computes what this toolkit's own model does, so both read the checkpoint "
            "otherwise than the code that it is held against here. Look for what that code computes besides or "
            "otherwise: keys of config.json, the order of norms and rotation, the diagonal of L. Or the numbers are of "
            "other weights."
        )
    weights = "export again, or name the checkpoint it came from with --checkpoint"
    if not found.runs_graphs:
        return (
            f"What to do: {found.runtime} ran the artifact's weights without its graphs, so they are not the "
            f"checkpoint's; {weights}."
        )
    plainer = "" if found.plainer is None else f"; {found.plainer}"
    return (
        "What to do: verify with --runtime torch, which runs the artifact's weights without its graphs. If that "
        f"fails too, the weights are not the checkpoint's: {weights}. If it passes, the graphs or what runs them "
        f"are wrong{plainer}."
    )


def unjudged_lines(found: Measurement) -> Iterator[str]:
    """Say which comparisons, and which positions of the others, could not have failed."""
    coverage = found.coverage
    items = [item for item in found.comparisons if not item.judged]
    if items:
        worst = max(items, key=lambda item: item.gate.limit)
        many = f"{len(items)} comparisons were" if len(items) > 1 else "1 comparison was"
        yield (
            f"{many} not judged, since a tensor of zeros would have passed: PyTorch itself loses these values in "
            f"{found.dtype}. The widest gate is that of {worst.tensor} ({worst.where}), "
            f"{worst.gate.limit:.2g}: 4 times PyTorch's own error of {worst.gate.baseline:.2g}."
        )
    if coverage.blind_positions:
        yield (
            f"At {coverage.blind_positions:,} of {coverage.positions:,} positions that were compared, zeros would have "
            "passed: what PyTorch computes there is next to nothing beside the rows before."
        )


def top_token_line(found: Measurement) -> str:
    """Say how often the preferred token is the reference's, and how far the distributions are apart."""
    items = [comparison.logits for comparison in found.against() if comparison.logits is not None]
    positions, agreed = sum(item.positions for item in items), sum(item.agreed for item in items)
    ties, other = sum(item.near_ties for item in items), sum(item.disagreed for item in items)
    divergence = max((item.kl_max for item in items), key=lambda kl: math.inf if math.isnan(kl) else kl)
    return (
        f"Top-1 token: {agreed} of {positions} positions agree, {ties} differ over a near-tie, {other} differ. "
        f"KL divergence at most {divergence:.1e} nats."
    )


def free_run_line(run: FreeRun) -> str:
    """Say how far a free generation went along with the reference."""
    if run.agreed == run.tokens:
        return f"Generating freely ({run.scenario}): all {run.tokens} tokens are the reference's."
    return (
        f"Generating freely ({run.scenario}): {run.agreed} of {run.tokens} tokens are the reference's before the first "
        "other one."
    )


def growth_line(items: Sequence[Comparison]) -> str:
    """Say whether errors grow along the sequence; empty where no trend could be fitted."""
    fitted = [(trend, item) for item in items if (trend := item.growth) is not None]
    if not fitted:
        return ""
    count = sum(trend.grows for trend, _ in fitted)
    trend, worst = max(fitted, key=lambda pair: pair[0].exponent)
    return (
        f"The error grows along the sequence in {count} of {len(fitted)} comparisons; most in {worst.tensor} "
        f"({worst.scenario}, {worst.schedule}), about as position^{trend.exponent:.2f}: {_quarters(trend)}."
    )


def caches_of(found: Measurement) -> list[Comparison]:
    """Return the comparisons of K and Y: logits are known from the last prompt token on and show no trend."""
    return [item for item in found.against() if not item.tensor.is_logits]


def conditioning_line(heads: Sequence[HeadStats]) -> str:
    """Say how well the solves are conditioned; empty with standard attention."""
    if not heads:
        return ""
    largest = max(heads, key=lambda head: head.largest_inverse)
    norm, condition = max(head.inverse_norm for head in heads), max(head.condition for head in heads)
    mean, most = max(head.correlation_mean for head in heads), max(head.correlation_max for head in heads)
    return (
        f"Conditioning: |L⁻¹| off the diagonal at most {largest.largest_inverse:.2f} (layer {largest.layer}, head "
        f"{largest.head}, {largest.scenario}), ‖L⁻¹‖₂ at most {norm:.2f} (bound {NORM_BOUND:g}), condition of L at "
        f"most {condition:.1f}; keys correlate by up to {mean:.2f} on average, {most:.2f} at most (first "
        f"{max(head.tokens for head in heads)} tokens)."
    )


def perplexity_line(item: Perplexity) -> str:
    """One sentence about a text."""
    return (
        f"Perplexity of {item.tokens} tokens: {item.candidate:.6g}, PyTorch in float64 {item.reference:.6g}, "
        f"difference {item.difference:+.2g} (PyTorch in the same precision: {item.baseline - item.reference:+.2g})."
    )


def _quarters(trend: ErrorGrowth) -> str:
    return f"the mean error over the last quarter of positions is {trend.ratio:.1f} times that over the first quarter"


def _tolerance_note(found: Measurement) -> str:
    if found.tolerance is None:
        return ""
    derived = "with them it would have passed" if found.within_derived else "with them it would have failed"
    return (
        f"The tolerance of {found.tolerance:g} was set by hand; the gates derived from PyTorch did not count "
        f"({derived}). "
    )


def _failure(found: Measurement) -> str:
    failure = found.failure
    if failure is None:
        return ""
    return (
        f"{failure.tensor} is beyond its gate at position {failure.failed_at} ({failure.where}): "
        f"relative error {failure.error:.2g}, allowed {failure.gate.limit:.2g} in {found.dtype}{_times(failure)}."
    )


def _unproven(found: Measurement) -> str:
    if not found.unproven:
        return ""
    names = ", ".join(map(str, found.unproven))
    rounded = {}
    if found.rounded_cache:
        rounded[f"a cache in {found.rounded_cache}"] = "--cache-dtype auto"
    if found.rounded_inputs:
        rounded[f"inputs rounded to {found.rounded_inputs}"] = "--activations float"
    where = f"In {found.dtype}" + (f", with {' and '.join(rounded)}," if rounded else "")
    remedy = f"Export with less rounding: {', '.join(rounded.values())}." if rounded else "Use a wider type."
    return f"{where} PyTorch itself loses {names}: nothing was proven. {remedy}"


def _success(found: Measurement) -> str:
    coverage = found.coverage
    worst = max((item.severity for item in found.comparisons if item.judged), default=0.0)
    same = "stays within the tolerance of" if found.tolerance is not None else "computes"
    rest = f"; {coverage.unjudged} more could not be judged" if coverage.unjudged else ""
    others = ", ".join(reference.kind for reference in found.outside)
    others = f"PyTorch and the other references ({others}) compute" if others else "PyTorch computes"
    return (
        f"{found.label} {same} what {others}: {coverage.judged} comparisons in {found.dtype}, the "
        f"worst error is {worst:.2f} of its gate{rest}."
    )


def _times(failure: Comparison) -> str:
    """How far beyond its gate, in words; nothing where the error is no number."""
    times = failure.error / failure.gate.limit
    if not math.isfinite(times):
        return ""
    shown = f"{times:.2f}" if times < 10 else f"{times:,.0f}" if times < 1e6 else f"{times:.0e}"
    return f", {shown} times that"
