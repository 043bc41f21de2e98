"""What quantization cost: logits beside those of the original checkpoint in float64. Reported, not judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lucid_deploy.model.scenarios import ONE_SHOT, equal_lengths
from lucid_deploy.parity.metrics import kl_divergence, position_errors
from lucid_deploy.parity.record import record, record_at_once
from lucid_deploy.parity.targets import CallCounter, Progress, Targets
from lucid_deploy.runtimes.session import Array, Session


@dataclass(frozen=True)
class LogitDifference:
    """Logits beside those of the original checkpoint in float64, over all positions of all scenarios.

    Attributes:
        relative_error: Relative L2 error, mean over positions.
        relative_error_max: The same of the worst position.
        top1_agreement: Share of positions with the same most likely token.
        kl_mean: Kullback-Leibler divergence from the original, in nats, mean over positions.
        kl_max: The same of the worst position.
        positions: Positions compared.
    """

    relative_error: float
    relative_error_max: float
    top1_agreement: float
    kl_mean: float
    kl_max: float
    positions: int


@dataclass(frozen=True)
class QuantizationCost:
    """What quantization cost.

    Attributes:
        weights: Of rounding the weights alone: the dequantized model in float64.
        as_run: Of everything: the artifact as the runtime runs it.
    """

    weights: LogitDifference
    as_run: LogitDifference


def measure_cost(
    original: Callable[[], Session[Any]], candidate: Session[Any], targets: Targets, progress: Progress | None = None
) -> QuantizationCost:
    """Compare logits with those of the original checkpoint, one-shot prefill and forced decoding in every scenario.

    Args:
        original: Opens the original in float64.
        candidate: The artifact in its runtime.
        targets: What the dequantized model computed in float64.
        progress: Called with (phase, calls done, calls in all).
    """
    groups = equal_lengths([target.scenario for target in targets.items])
    total = sum(2 + ONE_SHOT.calls(group[0]) * len(group) for group in groups)
    meter = CallCounter(progress, "Cost of quantization", total)
    session, wanted = original(), {}
    for group in groups:
        traces = record_at_once(session, group, meter.tick)
        wanted.update({scenario.name: trace.logits.values for scenario, trace in zip(group, traces, strict=True)})
    del session
    ordered = [wanted[target.scenario.name] for target in targets.items]
    exact = [target.reference.logits.values for target in targets.items]
    as_run = [record(candidate, target.scenario, tick=meter.tick).logits.values for target in targets.items]
    return QuantizationCost(_difference(exact, ordered), _difference(as_run, ordered))


def _difference(found: list[Array], wanted: list[Array]) -> LogitDifference:
    errors = np.concatenate([position_errors(a, b) for a, b in zip(found, wanted, strict=True)])
    divergence = np.concatenate([kl_divergence(a, b).reshape(-1) for a, b in zip(found, wanted, strict=True)])
    same = np.concatenate([(a.argmax(-1) == b.argmax(-1)).reshape(-1) for a, b in zip(found, wanted, strict=True)])
    return LogitDifference(
        relative_error=float(errors.mean()),
        relative_error_max=float(errors.max()),
        top1_agreement=float(same.mean()),
        kl_mean=float(divergence.mean()),
        kl_max=float(divergence.max()),
        positions=int(same.size),
    )
