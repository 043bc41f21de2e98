"""The result of a verification in sentences, for the terminal, the page and error messages."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from lucid_deploy.parity.gate import FACTOR, Comparison
from lucid_deploy.parity.perplexity import TextCost

if TYPE_CHECKING:
    from lucid_deploy.parity.results import FreeRun, Verification

MEANINGS = {
    "K": "the keys that a layer caches",
    "Y": "its preconditioned values, which solve L Y = V and are cached in place of V",
    "V": "its values",
}


def verdict(found: Verification) -> str:
    """Return the result in a few sentences; the first tensor beyond its gate is named with layer and position."""
    if not found.comparisons:
        return found.failed_artifact_check
    failed = _failure(found) or _not_proven(found)
    if not failed and found.failed_artifact_check:
        failed = f"What was compared is within its gates, but {found.failed_artifact_check}"
    return failed or _success(found)


def _failure(found: Verification) -> str:
    failure = found.first_failure
    if failure is None:
        return ""
    times = failure.error / failure.gate.limit
    shown = ""
    if math.isfinite(times):
        number = f"{times:.2f}" if times < 10 else f"{times:,.0f}" if times < 1e6 else f"{times:.0e}"
        shown = f", {number} times that"
    return (
        f"{failure.tensor} is beyond its gate at position {failure.failed_at} ({failure.where}): "
        f"relative error {failure.error:.2g}, allowed {failure.gate.limit:.2g} in {found.dtype}{shown}."
    )


def lost(found: Verification) -> str:
    """Name the tensors in ``found.unproven``; of more than four, the first three and how many more there are."""
    names = list(map(str, found.unproven))
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more tensors"


def _remedies(found: Verification) -> dict[str, str]:
    """Return the export option that avoids each rounding beyond that of the arithmetic, by what is rounded."""
    remedies = {}
    if found.rounded_cache:
        remedies[f"a cache in {found.rounded_cache}"] = "--cache-dtype auto"
    if found.rounded_inputs:
        remedies[f"inputs rounded to {found.rounded_inputs}"] = "--activations float"
    return remedies


def _not_proven(found: Verification) -> str:
    if not found.not_proven:
        return ""
    remedies = _remedies(found)
    where = f"In {found.dtype}" + (f", with {' and '.join(remedies)}," if remedies else "")
    remedy = f"Export with less rounding: {', '.join(remedies.values())}." if remedies else "Use a wider type."
    where = f"{where} {'; '.join(found.not_proven)}."
    if found.explanation is not None and found.explanation.origin is not None:
        return f"{where} No gate over whole sequences failed, but one of a single layer did."
    return f"{where} No gate failed, but that proves too little. {remedy}"


def _success(found: Verification) -> str:
    coverage = found.coverage
    worst = max((item.severity for item in found.comparisons if item.judged), default=0.0)
    rest = f"; {coverage.unjudged} more could not be judged" if coverage.unjudged else ""
    others = ", ".join(reference.kind for reference in found.others)
    others = f"PyTorch and the other references ({others}) compute" if others else "PyTorch computes"
    weights, cost = "", ""
    if found.quantization is not None:
        weights, text = " on the quantized weights", found.text
        cost = " Quantization itself is not judged: --text FILE measures what it costs on a text of yours."
        if text is not None:
            cost = f" Quantization costs {text.change} of perplexity on your text."
    return (
        f"{found.label} computes what {others}{weights}: {coverage.judged} comparisons in {found.dtype}, the "
        f"worst error is {worst:.2f} of its gate{rest}.{_about_rounding(found)}{cost}"
    )


def _about_rounding(found: Verification) -> str:
    """Say how wide a rounded cache or rounded inputs make gates, and which export options avoid it; empty if narrow."""
    remedies, after = _remedies(found), "After"
    doubts = list(found.doubts()) if found.rounded_inputs else found.wide_logits() if found.rounded_cache else []
    if not doubts:
        return ""
    if found.rounded_inputs:
        after = "Each layer by itself, on the reference's inputs, is within its gate; after"
    options = " ".join(remedies.values())
    return f" With {' and '.join(remedies)}, {'; '.join(doubts)}. {after} export with {options} gates are narrow."


def advice(found: Verification) -> str:
    """Say what to do about a failure; empty if no gate failed."""
    if found.first_failure is None:
        return ""
    if found.own_failure is None:
        return (
            "What to do: the artifact agrees with this toolkit's own model, so both read the checkpoint differently "
            "from the code that it is compared with here. Look for what that code does differently: keys of "
            "config.json, the order of norms and rotation, the diagonal of L. Or the numbers belong to other weights."
        )
    weights = "export again, or name the checkpoint it came from with --checkpoint"
    if not found.runs_graphs:
        return (
            f"What to do: {found.runtime} ran the artifact's weights without its graphs, so they are not the "
            f"checkpoint's; {weights}."
        )
    hint = "" if found.fallback_hint is None else f"; {found.fallback_hint}"
    return (
        "What to do: verify with --runtime torch, which runs the artifact's weights without its graphs. If that "
        f"fails too, the weights are not the checkpoint's: {weights}. If it passes, the graphs or what runs them "
        f"are wrong{hint}."
    )


def coverage_line(found: Verification) -> str:
    """Say how much was judged, and against what."""
    parts = [
        f"{coverage.judged:,} of {coverage.total:,} {'comparisons ' if index == 0 else ''}against {reference.words}"
        for index, (reference, coverage) in enumerate(found.coverage_by_reference())
    ]
    sentence = f"Judged {', and '.join(parts)}."
    return sentence if not found.left_out else f"{sentence} Parts of a full verification were left out."


def cached(found: Verification) -> str:
    """Name what layers cache, such as ``K and Y``, or ``K and V`` if all attention is standard."""
    *names, last = dict.fromkeys(item.tensor.word for item in _sorted_caches(found))
    return f"{', '.join(names)} and {last}" if names else last


def _sorted_caches(found: Verification) -> list[Comparison]:
    items = [item for item in found.against() if not item.tensor.is_logits]
    return sorted(items, key=lambda item: (item.tensor.kind, item.tensor.word))


def legend(found: Verification) -> Iterator[str]:
    """Yield sentences that explain the table's tensors, errors and gates."""
    names = dict.fromkeys(item.tensor.word for item in _sorted_caches(found))
    meant = [f"{name}: {MEANINGS[name]}" for name in names if name in MEANINGS]
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
            "what PyTorch computes there is next to nothing beside the rows before."
        )


def other_reference_lines(found: Verification) -> Iterator[str]:
    """Say what the candidate's worst judged error is against each other implementation."""
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
    """Say how often the most likely token is the reference's, and how far the distributions are apart."""
    items = [comparison.logits for comparison in found.against() if comparison.logits is not None]
    positions, agreed = sum(item.positions for item in items), sum(item.agreed for item in items)
    ties, other = sum(item.near_ties for item in items), sum(item.disagreed for item in items)
    divergence = max((item.kl_max for item in items), key=lambda kl: math.inf if math.isnan(kl) else kl)
    return (
        f"Most likely token: {agreed} of {positions} positions agree, {ties} differ over a near-tie, {other} differ. "
        f"KL divergence at most {divergence:.1e} nats."
    )


def free_run_line(run: FreeRun) -> str:
    """Say how many of a free generation's first tokens are the ones that PyTorch generates."""
    if run.agreed == run.tokens:
        return f"Generating freely ({run.scenario}): all {run.tokens} tokens are PyTorch's."
    return (
        f"Generating freely ({run.scenario}): {run.agreed} of {run.tokens} tokens are PyTorch's before the first other "
        "one."
    )


def text_line(found: Verification, cost: TextCost) -> str:
    """Give the perplexity of a text, beside that of the model that the artifact was made from."""
    other = "PyTorch in float64" if found.quantization is None else "the original checkpoint"
    return f"Perplexity of {cost.tokens} tokens: {cost.own:.6g}, with {other} {cost.original:.6g}: {cost.sentence()}."
