"""Mixed precision by measured error: which kinds of weights have 8 bits, and GPTQ with what was chosen."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.quantization import Quantization
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.budget import BITS, Budget, Choice, predicted_best, refined
from lucid_deploy.export.quantize.gptq import rule
from lucid_deploy.export.quantize.learn import learn_weights, rounded_weight
from lucid_deploy.export.quantize.method import LearnedWeights, LearningRule, QuantizationMethod
from lucid_deploy.export.quantize.sensitivity import MEASURED, LogitErrors, by_kind, sensitivities

if TYPE_CHECKING:
    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.export.quantize.options import QuantizeOptions
    from lucid_deploy.model.checkpoint import Checkpoint

AUTO = "auto"
TRIALS = 64  # choices that are measured at most
SEARCH_TOKENS = 4096  # that each of them learns from, or as many as the widest input; the last one learns from all
Progress = Callable[[str, int, int], None]
Array = np.ndarray[Any, np.dtype[Any]]


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


def widest_input(quantization: Quantization) -> int:
    """Return how many inputs the widest quantized weight has; second moments of fewer tokens have no inverse."""
    return max(tensor.shape[1] for tensor in quantization.tensors.values())


def tokens_needed(row: int, widest: int) -> int:
    """Return the tokens that choosing bits needs: rows to learn from, and one more to measure on.

    Args:
        row: Tokens of a row.
        widest: See :func:`widest_input`.
    """
    return (-(-widest // row) + 1) * row


def split_rows(rows: CalibrationRows, widest: int) -> tuple[Array, Array]:
    """Part whole rows: what choices learn from, and what they are measured on. A shorter last row is left out.

    Args:
        rows: The calibration rows.
        widest: See :func:`widest_input`.

    Returns:
        int64 ``(B, N)`` each: rows to learn from, of :data:`SEARCH_TOKENS` or ``widest`` tokens where there are so
        many; rows spread over the text to measure on, :data:`MEASURED` tokens, or a third of a shorter text.
    """
    row, whole = rows.facts["row_tokens"], rows.rows[0]
    spare = len(whole) - -(-widest // row)
    if spare < 1 or whole.shape[1] < row:
        raise LucidError(
            f"--method {AUTO} measures on other tokens than it learns from, and needs {tokens_needed(row, widest)} for "
            f"both; the calibration text has {rows.tokens}. Give more text."
        )
    count = min(max(MEASURED // row, 1), max(len(whole) // 3, 1), spare)
    places = np.linspace(0, len(whole) - 1, count).astype(int)
    others = np.delete(whole, places, axis=0)
    return others[: -(-max(SEARCH_TOKENS, widest) // row)], whole[places]


def learn_mixed(
    checkpoint: Checkpoint,
    quantization: Quantization,
    rows: CalibrationRows,
    method: LearningRule,
    dtype: str,
    target: float,
    progress: Progress | None = None,
) -> tuple[LearnedWeights, Quantization]:
    """Choose bits by kind of weight, and the numbers; arguments and result as :func:`learn_weights`.

    Args:
        target: Bits a quantized weight at most, on average, scales included.
    """
    kinds = by_kind(list(quantization.tensors), checkpoint.tied)
    budget = budget_of(quantization, kinds, dtype, target)
    budget.check()
    choice, facts = _search(checkpoint, quantization, kinds, budget, rows, method, dtype, progress)
    chosen = with_bits(quantization, kinds, choice)
    learned, record = learn_weights(checkpoint, chosen, rows, method, dtype, progress)
    facts = {**record.method.settings, "target_bits": target, "bits": choice, **facts}
    return learned, replace(record, method=replace(record.method, name=AUTO, settings=facts))


def _search(
    checkpoint: Checkpoint,
    quantization: Quantization,
    kinds: dict[str, list[str]],
    budget: Budget,
    rows: CalibrationRows,
    method: LearningRule,
    dtype: str,
    progress: Progress | None,
) -> tuple[Choice, dict[str, Any]]:
    """Choose bits; return them, and what the manifest says of the search."""
    learned_from, measured = split_rows(rows, widest_input(quantization))
    few = replace(rows, rows=[learned_from])
    errors, steps = LogitErrors(checkpoint, measured), itertools.count()

    def report() -> None:
        if progress is not None:
            progress("Choosing bits", next(steps), TRIALS + 1)

    def measure(choice: Choice) -> float:
        report()
        learned, record = learn_weights(checkpoint, with_bits(quantization, kinds, choice), few, method, dtype)
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


class Automatic(QuantizationMethod):
    """``--method auto``: GPTQ, with 8 bits where 4 cost most."""

    name = AUTO
    learns = True
    options = frozenset({"tokens", "damping", "order", "target"})

    def check(self, options: QuantizeOptions) -> None:
        if options.scheme != "int4":
            raise LucidError("--method auto gives int4 weights 8 bits where it pays: use it with --quantize int4.")
        if options.target_bits is None:
            raise LucidError("--method auto needs a size: add --target-bits, such as 6.")
        if not 0 < options.target_bits <= 32:  # NaN too
            raise LucidError(f"--target-bits must be above 0 and 32 at most, not {options.target_bits:g}.")

    def tokens_needed(self, row: int, widest: int) -> int:
        return tokens_needed(row, widest)

    def check_rows(self, rows: CalibrationRows, widest: int) -> None:
        split_rows(rows, widest)

    def learn(self, checkpoint, quantization, rows, options, dtype, progress):  # type: ignore[no-untyped-def]
        return learn_mixed(checkpoint, quantization, rows, rule(options), dtype, options.target_bits, progress)


METHOD = Automatic()
