"""Write the sentences that reports show beside the verdict: advice, coverage, other references, tokens, text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lucid_deploy.parity.gate import FACTOR
from lucid_deploy.parity.perplexity import TextCost

if TYPE_CHECKING:
    from lucid_deploy.parity.results import FreeRun, Verification

MEANINGS = {
    "K": "the keys that a layer caches",
    "Y": "its preconditioned values, which solve L Y = V and are cached in place of V",
    "V": "its values",
}


def advice(found: Verification) -> str:
    """Return advice on what to do about a failure; empty if no gate failed."""
    if found.first_failure is None:
        return ""
    if found.own_failure is None:
        return (
            "What to do: the artifact agrees with this toolkit's own model, so both read the checkpoint differently "
            "from the code that recorded the golden file. Look for what that code does differently: keys of "
            "config.json, the order of norms and rotation, the diagonal of L. Or it used other weights."
        )
    weights = "export again, or name the checkpoint it came from with --checkpoint"
    if not found.runs_graphs:
        return (
            f"What to do: {found.runtime} ran the artifact's weights without its graphs, so the weights are not the "
            f"checkpoint's; {weights}."
        )
    hint = "" if found.fallback_hint is None else f"; {found.fallback_hint}"
    return (
        "What to do: verify with --runtime torch, which runs the artifact's weights without its graphs. If that "
        f"fails too, the weights are not the checkpoint's: {weights}. If it passes, the graphs or the runtime "
        f"are wrong{hint}."
    )


def coverage_line(found: Verification) -> str:
    """Say how many comparisons were judged, and against which references."""
    parts = [
        f"{coverage.judged:,} of {coverage.total:,} {'comparisons ' if index == 0 else ''}against {reference.words}"
        for index, (reference, coverage) in enumerate(found.coverage_by_reference())
    ]
    sentence = f"Judged {', and '.join(parts)}."
    return sentence if not found.left_out else f"{sentence} Parts of a full verification were left out."


def cached(found: Verification) -> str:
    """List the tensors that layers cache, such as ``K and Y``, or ``K and V`` if all attention is standard."""
    *names, last = _cache_words(found)
    return f"{', '.join(names)} and {last}" if names else last


def _cache_words(found: Verification) -> list[str]:
    kinds = sorted({(item.tensor.kind, item.tensor.word) for item in found.against() if not item.tensor.is_logits})
    return list(dict.fromkeys(word for _, word in kinds))


def legend(found: Verification) -> Iterator[str]:
    """Yield sentences that explain the table's tensors, errors and gates."""
    meant = [f"{name}: {MEANINGS[name]}" for name in _cache_words(found) if name in MEANINGS]
    caches = f"{'. '.join(meant)}. Each is" if meant else "The logits are"
    yield f"{caches} compared at every position{', and so are the logits' if meant else ''}."
    yield (
        "Error: the L2 norm of the difference over that of the reference, at the worst position. Gate: the largest "
        f"error allowed, mostly {FACTOR:g} times PyTorch's own largest error in {found.dtype}."
    )


def unjudged_lines(found: Verification) -> Iterator[str]:
    """Say how many comparisons were not judged, and at how many positions of the others zeros would have passed."""
    coverage = found.coverage
    items = [item for item in found.comparisons if not item.judged]
    if items:
        worst = max(items, key=lambda item: item.gate.limit)
        many = f"{len(items)} comparisons were" if len(items) > 1 else "1 comparison was"
        yield (
            f"{many} not judged, since a tensor of zeros would have passed: PyTorch itself loses these values in "
            f"{found.dtype}. The widest gate is that of {worst.tensor} ({worst.where}), "
            f"{worst.gate.limit:.2g}: {FACTOR:g} times PyTorch's own error of {worst.gate.baseline:.2g}."
        )
    if coverage.blind_positions:
        yield (
            f"At {coverage.blind_positions:,} of {coverage.positions:,} compared positions zeros would have passed: "
            "what PyTorch computes there is negligible beside earlier rows."
        )


def other_reference_lines(found: Verification) -> Iterator[str]:
    """Give the candidate's worst judged error against each other implementation."""
    for reference in found.others:
        items = [item for item in found.against(reference.kind) if item.judged]
        if items:
            worst = max(items, key=lambda item: item.severity)
            yield (
                f"Against {reference.words}: the worst error is {worst.metrics.worst_position_error:.2g} in "
                f"{worst.tensor} ({worst.scenario}, {worst.schedule}), {worst.severity:.2f} of its gate of "
                f"{worst.gate.limit:.2g}."
            )


def top_token_line(found: Verification) -> str:
    """Say how often the most likely token is the reference's, and how much the distributions differ."""
    items = [comparison.logits for comparison in found.against() if comparison.logits is not None]
    positions, agreed = sum(item.positions for item in items), sum(item.agreed for item in items)
    ties, other = sum(item.near_ties for item in items), sum(item.disagreed for item in items)
    divergence = max((item.kl_max for item in items), key=lambda kl: math.inf if math.isnan(kl) else kl)
    return (
        f"Most likely token: {agreed} of {positions} positions agree, {ties} differ over a near-tie, {other} differ. "
        f"KL divergence at most {divergence:.1e} nats."
    )


def free_run_line(run: FreeRun) -> str:
    """Say how many tokens of a free generation agree with PyTorch's before the first that differs."""
    if run.agreed == run.tokens:
        return f"Generating freely ({run.scenario}): all {run.tokens} tokens are PyTorch's."
    return (
        f"Generating freely ({run.scenario}): {run.agreed} of {run.tokens} tokens are PyTorch's before the first that "
        "differs."
    )


def text_line(found: Verification, cost: TextCost) -> str:
    """Give the perplexity of a text, beside that of PyTorch in float64 or of the original checkpoint."""
    other = "PyTorch in float64" if found.quantization is None else "the original checkpoint"
    return f"Perplexity of {cost.tokens} tokens: {cost.own:.6g}, with {other} {cost.original:.6g}: {cost.sentence()}."
