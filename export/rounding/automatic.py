"""Mixed precision by measured error: which kinds of weights have 8 bits, and GPTQ with what was chosen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.artifact.quantization_method import AUTO
from lucid_deploy.export.rounding.budget import BITS, Budget, Choice, predicted_best, refined
from lucid_deploy.export.rounding.learn import GptqSettings, LearnedWeights, learn_weights, rounded_weight
from lucid_deploy.export.rounding.sensitivity import LogitErrors, by_kind, measured_rows, sensitivities

if TYPE_CHECKING:
    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.model.checkpoint import Checkpoint

TRIALS = 64  # choices that are measured at most
SEARCH_TOKENS = 4096  # that each of them learns from; the last choice learns from all
Progress = Callable[[str, int, int], None]


def with_bits(quantization: Quantization, kinds: dict[str, list[str]], choice: Choice) -> Quantization:
    """Return the record with other bits, by kind."""
    tensors = dict(quantization.tensors)
    for kind, names in kinds.items():
        for name in names:
            tensors[name] = replace(tensors[name], bits=None if choice[kind] == quantization.bits else choice[kind])
    return replace(quantization, tensors=tensors)


def budget_of(quantization: Quantization, kinds: dict[str, list[str]], dtype: str, target: float) -> Budget:
    """Return what every kind takes with each number of bits, scales being of type ``dtype``."""
    plans = [with_bits(quantization, kinds, dict.fromkeys(kinds, bits)) for bits in BITS]
    sizes = {
        kind: tuple(float(sum(plan.stored_size(name, dtype) for name in names)) for plan in plans)
        for kind, names in kinds.items()
    }
    return Budget(sizes, sum(math.prod(tensor.shape) for tensor in quantization.tensors.values()), target)


def learn_mixed(
    checkpoint: Checkpoint,
    quantization: Quantization,
    rows: CalibrationRows,
    settings: GptqSettings,
    dtype: str,
    target: float,
    progress: Progress | None = None,
) -> tuple[LearnedWeights, Quantization]:
    """Choose bits by kind of weight, and the numbers; arguments and result as :func:`learn_weights`.

    Args:
        target: Bits a quantized weight at most, on average, scales included.

    Raises:
        LucidError: A target that cannot be met, or as :func:`learn_weights`.
    """
    kinds = by_kind(list(quantization.tensors), checkpoint.tied)
    budget = budget_of(quantization, kinds, dtype, target)
    budget.check()
    choice, facts = _search(checkpoint, quantization, kinds, budget, rows, settings, dtype, progress)
    learned, record = learn_weights(checkpoint, with_bits(quantization, kinds, choice), rows, settings, dtype, progress)
    facts = {**record.method.settings, "target_bits": target, "bits": choice, **facts}
    return learned, replace(record, method=replace(record.method, name=AUTO, settings=facts))


def _search(
    checkpoint: Checkpoint,
    quantization: Quantization,
    kinds: dict[str, list[str]],
    budget: Budget,
    rows: CalibrationRows,
    settings: GptqSettings,
    dtype: str,
    progress: Progress | None,
) -> tuple[Choice, dict[str, Any]]:
    """Choose bits; return them, and what the manifest says of the search."""
    few = replace(rows, rows=[measured_rows(rows.rows, SEARCH_TOKENS)])
    errors, steps = LogitErrors(checkpoint, measured_rows(rows.rows)), itertools.count()

    def report() -> None:
        if progress is not None:
            progress("Choosing bits", next(steps), TRIALS + 1)

    def measure(choice: Choice) -> float:
        report()
        learned, record = learn_weights(checkpoint, with_bits(quantization, kinds, choice), few, settings, dtype)
        parts = learned.parts
        return errors.of({n: rounded_weight(checkpoint, record, n, parts.get(n), dtype) for n in record.tensors})

    report()
    alone = nearest_sensitivities(checkpoint, quantization, kinds, errors, dtype)
    start = predicted_best(budget, {kind: tuple(alone[bits][kind] for bits in BITS) for kind in kinds})
    choice, error, trials = refined(budget, start, measure, TRIALS)
    found = {f"int{bits}": {kind: _digits(value) for kind, value in alone[bits].items()} for bits in BITS}
    return choice, {"trials": trials, "error": _digits(error), "alone": found}


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def nearest_sensitivities(
    checkpoint: Checkpoint, quantization: Quantization, kinds: dict[str, list[str]], errors: LogitErrors, dtype: str
) -> dict[int, dict[str, float]]:
    """Return the error of the logits when one kind alone is rounded to nearest, by bits and kind."""
    found = {}
    for bits in BITS:
        plan = with_bits(quantization, kinds, dict.fromkeys(kinds, bits))
        found[bits] = sensitivities(
            errors, kinds, lambda name, plan=plan: rounded_weight(checkpoint, plan, name, None, dtype)
        )
    return found
