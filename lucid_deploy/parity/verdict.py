"""Judge a verification: whether gates that held are narrow enough, and the result in a few sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from lucid_deploy.parity.record import TensorId
from lucid_deploy.parity.scenarios import FREE_RUNNING, SCHEDULES

if TYPE_CHECKING:
    from lucid_deploy.parity.results import Verification

# What a user would accept of an artifact that "computes what PyTorch computes". Beyond it, passing proves too little.
ACCEPTED_ERROR = 0.1  # median of the logits' gates, a relative error
ACCEPTED_UNJUDGED = 0.1  # share of comparisons that could not fail
ACCEPTED_OTHER = 0.05  # share of positions with another most likely token; doubled if inputs of products are rounded


def in_sentences(found: Verification) -> str:
    """Return the result in a few sentences; a failure names the first tensor beyond its gate, with its position."""
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
    """Say how wide gates are if the cache or inputs are rounded, and which options avoid it; empty if narrow."""
    remedies, after = _remedies(found), "After"
    doubts = list(_doubts(found)) if found.rounded_inputs else _wide_logits(found) if found.rounded_cache else []
    if not doubts:
        return ""
    if found.rounded_inputs:
        after = "Each layer by itself, on the reference's inputs, is within its gate; after"
    options = " ".join(remedies.values())
    return f" With {' and '.join(remedies)}, {'; '.join(doubts)}. {after} export with {options}, gates are narrow."


def _remedies(found: Verification) -> dict[str, str]:
    """Return, by what is rounded beyond the model's own precision, the export option that avoids this."""
    remedies = {}
    if found.rounded_cache:
        remedies[f"a cache in {found.rounded_cache}"] = "--cache-dtype auto"
    if found.rounded_inputs:
        remedies[f"inputs rounded to {found.rounded_inputs}"] = "--activations float"
    return remedies


def reasons_not_proven(found: Verification) -> tuple[str, ...]:
    """Return why gates that held prove too little, each reason a clause without a period; empty if they prove enough.

    With rounded inputs, errors add up from layer to layer until gates over whole sequences are wide. Then it is enough
    if each layer passes by itself on the reference's inputs and few most likely tokens differ.
    """
    proven = found.rounded_inputs and found.explanation is not None and found.explanation.every_layer_passed
    reasons = [] if proven else list(_doubts(found))
    items = [item.logits for item in found.against() if item.logits is not None]
    positions, other = sum(item.positions for item in items), sum(item.positions - item.agreed for item in items)
    if other > ACCEPTED_OTHER * positions * (2 if found.rounded_inputs else 1):
        reasons.append(f"{other} of {positions} most likely tokens are not those of PyTorch in float64")
    return tuple(reasons)


def _doubts(found: Verification) -> Iterator[str]:
    """Yield why comparisons over whole sequences prove too little, each reason a clause without a period."""
    if found.unproven:
        yield f"PyTorch itself loses {lost(found)}"
    if found.rounded_inputs or not found.rounded_cache:
        yield from _wide_logits(found)
    if not found.unproven and found.coverage.unjudged > ACCEPTED_UNJUDGED * found.coverage.total:
        yield f"{found.coverage.unjudged} of {found.coverage.total} comparisons could not be judged"


def _wide_logits(found: Verification) -> list[str]:
    """Say how wide the logits' gates are if their median is too wide; empty otherwise.

    Comparisons that were not judged are left out. Equal gates count once, since sequences share them.
    """
    gate = np.median([*{c.gate.limit for c in found.against() if c.logits is not None and c.judged}] or [0.0])
    return [f"an error of {gate:.0%} of the logits would have passed"] if gate > ACCEPTED_ERROR else []


def unproven_tensors(found: Verification) -> tuple[TensorId, ...]:
    """Return the tensors that were judged in no scenario of some schedule, where passing proves nothing.

    Each reference is considered separately. Schedules that run only the greedy scenario are left out.
    """
    single = {FREE_RUNNING, *(schedule.name for schedule in SCHEDULES if schedule.greedy_only)}
    judged: dict[tuple[TensorId, str, str], bool] = {}
    for item in found.comparisons:
        if item.schedule not in single:
            key = (item.tensor, item.schedule, item.against)
            judged[key] = judged.get(key, False) or item.judged
    return tuple(sorted({tensor for (tensor, _, _), any_judged in judged.items() if not any_judged}))


def lost(found: Verification) -> str:
    """List the tensors in ``found.unproven``; if there are more than four, the first three and the number of others."""
    names = list(map(str, found.unproven))
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more tensors"
