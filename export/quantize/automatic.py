"""Mixed precision by measured error: choose which kinds of weights get 8 bits, then learn the numbers with GPTQ.

A kind is a weight's place within its layer: ``q_proj``, ``k_proj``, …, or ``lm_head``. What counts is the error of the
whole model's logits: an error of K enters L and is carried by the solve into all later Y, which no product's own error
shows. The choice with the least sum of squared errors of single kinds is the start; then neighbours are measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lucid_deploy.artifact.quantization import Quantization, short_name
from lucid_deploy.errors import LucidError
from lucid_deploy.export.quantize.gptq import rule
from lucid_deploy.export.quantize.learn import learn_weights, rounded_weight
from lucid_deploy.export.quantize.method import LearnedWeights, LearningRule, QuantizationMethod
from lucid_deploy.export.quantize.plan import EMBEDDING

if TYPE_CHECKING:
    import torch

    from lucid_deploy.export.calibration import CalibrationRows
    from lucid_deploy.export.quantize.options import QuantizeOptions
    from lucid_deploy.model.checkpoint import Checkpoint
    from lucid_deploy.model.lucid import CausalModel

BITS = (4, 8)
_MOST_KINDS = 20  # 2^20 choices are looked at in a second
Choice = dict[str, int]  # bits by kind


@dataclass(frozen=True)
class Budget:
    """The size limit of a choice of bits."""

    sizes: dict[str, tuple[float, ...]]  # bytes of each kind with each of BITS, scales included
    weights: int  # how many weights all kinds have together
    target: float  # bits a weight at most, on average

    def bits(self, choice: Choice) -> float:
        """Return the mean bits of a weight for a choice."""
        return 8 * sum(self.sizes[kind][BITS.index(bits)] for kind, bits in choice.items()) / self.weights

    def check(self) -> None:
        """Raise LucidError if no choice fits, or there are too many kinds."""
        if len(self.sizes) > _MOST_KINDS:
            raise LucidError(
                f"--method auto is for models of up to {_MOST_KINDS} kinds of weights; this one has {len(self.sizes)}."
            )
        least, most = (self.bits(dict.fromkeys(self.sizes, bits)) for bits in BITS)
        if least > self.target:
            raise LucidError(
                f"--target-bits {self.target:g} is impossible: with {BITS[0]} bits everywhere a weight takes "
                f"{least:.4g}, scales included, and with {BITS[1]} bits {most:.4g}. Larger blocks (--block-size) and "
                "--dtype float16 make scales smaller."
            )


def predicted_best(budget: Budget, errors: dict[str, tuple[float, ...]]) -> Choice:
    """Return the choice within the budget with the least sum of squared errors, of all choices.

    Args:
        errors: Of the logits, when one kind alone is rounded, with each of :data:`BITS`.
    """
    kinds = list(budget.sizes)
    choices = np.array(list(itertools.product(range(len(BITS)), repeat=len(kinds))))  # (choices, kinds)
    places = np.arange(len(kinds))
    sizes = np.array([budget.sizes[kind] for kind in kinds])[places, choices].sum(axis=1)
    lost = (np.array([errors[kind] for kind in kinds])[places, choices] ** 2).sum(axis=1)
    best = choices[np.where(8 * sizes / budget.weights <= budget.target, lost, np.inf).argmin()]
    return {kind: BITS[place] for kind, place in zip(kinds, best, strict=True)}


def refined(
    budget: Budget, start: Choice, measure: Callable[[Choice], float], trials: int
) -> tuple[Choice, float, int]:
    """Improve a choice by measuring its neighbours: one kind with other bits, or the bits of two kinds swapped.

    Squared errors do not quite add up: later layers compensate for earlier ones. So measure all neighbours, take the
    best one, and repeat until none is better.

    Args:
        measure: Gives the error of a choice; is asked once for each.
        trials: After how many measurements to stop.

    Returns:
        The choice, its error, and how many choices were measured.
    """
    known: dict[tuple[int, ...], float] = {}

    def error(choice: Choice) -> float:
        key = tuple(choice.values())
        if key not in known:
            known[key] = measure(choice) if len(known) < trials else float("inf")
        return known[key]

    best = start
    while True:
        error(best)
        near = [choice for choice in _neighbours(best) if budget.bits(choice) <= budget.target]
        better = min(near, key=error, default=best)
        if not error(better) < error(best):
            return best, error(best), sum(value < float("inf") for value in known.values())
        best = better


def _neighbours(choice: Choice) -> Iterator[Choice]:
    other = {bits: BITS[1 - place] for place, bits in enumerate(BITS)}
    for kind, bits in choice.items():
        yield {**choice, kind: other[bits]}
    for first, second in itertools.combinations(choice, 2):
        if choice[first] != choice[second]:
            yield {**choice, first: choice[second], second: choice[first]}


MEASURED = 2048  # tokens at most, since their logits are compared


def kind_of(name: str, tied: bool = False) -> str:
    """Return a weight's kind; a tied embedding counts as the head."""
    return "lm_head" if tied and name == EMBEDDING else short_name(name).rpartition(".")[2]


def by_kind(names: Iterator[str] | list[str], tied: bool) -> dict[str, list[str]]:
    """Group weights by their kinds."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(kind_of(name, tied), []).append(name)
    return kinds


class LogitErrors:
    """Measure relative errors of a float32 model's logits when some of its weights are replaced.

    Args:
        checkpoint: The opened checkpoint; the whole model is held in float32.
    """

    def __init__(self, checkpoint: Checkpoint, ids: Array) -> None:
        import torch

        from lucid_deploy.model.checkpoint import load_model

        self._model: CausalModel = load_model(checkpoint)
        self._ids = torch.from_numpy(ids)
        self._exact = self._logits()

    def of(self, weights: dict[str, torch.Tensor]) -> float:
        """Return mean ‖difference‖ / ‖exact‖ over positions with these weights instead of the model's own."""
        import torch

        parameters = dict(self._model.named_parameters())
        before = {name: parameters[name].data for name in weights}
        try:
            for name, weight in weights.items():
                parameters[name].data = weight
            found = self._logits()
        finally:
            for name, weight in before.items():
                parameters[name].data = weight
        norms = [torch.linalg.vector_norm(x, dim=-1) for x in (found - self._exact, self._exact)]
        return float((norms[0] / norms[1]).double().mean())

    def _logits(self) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            return torch.cat([self._model(row[None])[0] for row in self._ids])


AUTO = "auto"
TRIALS = 64  # choices that are measured at most
SEARCH_TOKENS = 4096  # that each of them learns from, or as many as the widest input; the last one learns from all
Progress = Callable[[str, int, int], None]
Array = np.ndarray[Any, np.dtype[Any]]


def with_bits(quantization: Quantization, kinds: dict[str, list[str]], choice: Choice) -> Quantization:
    """Return the record with the bits of a choice."""
    tensors = dict(quantization.tensors)
    for kind, names in kinds.items():
        for name in names:
            tensors[name] = replace(tensors[name], bits=None if choice[kind] == quantization.bits else choice[kind])
    return replace(quantization, tensors=tensors)


def budget_of(quantization: Quantization, kinds: dict[str, list[str]], dtype: str, target: float) -> Budget:
    """Return the sizes of every kind with each number of bits and scales of type ``dtype``."""
    plans = [with_bits(quantization, kinds, dict.fromkeys(kinds, bits)) for bits in BITS]
    sizes = {
        kind: tuple(float(sum(plan.stored_size(name, dtype) for name in names)) for plan in plans)
        for kind, names in kinds.items()
    }
    weights = (math.prod(quantization.tensors[name].shape) for names in kinds.values() for name in names)
    return Budget(sizes, sum(weights), target)


def widest_input(quantization: Quantization) -> int:
    """Return the inputs of the widest quantized weight; second moments of fewer tokens are singular."""
    return max(tensor.shape[1] for tensor in quantization.tensors.values() if not tensor.experts)


def tokens_needed(row: int, widest: int) -> int:
    """Return the tokens that choosing bits needs: whole rows to learn from, and one more to measure on."""
    return (-(-widest // row) + 1) * row


def split_rows(rows: CalibrationRows, widest: int) -> tuple[Array, Array]:
    """Split the whole rows into rows to learn from and rows to measure on; drop a shorter last row.

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
    """Choose bits by kind of weight, then learn the numbers; arguments and result as in ``learn_weights``.

    Args:
        target: The most bits that a quantized weight may take on average, scales included.
    """
    names = [name for name, tensor in quantization.tensors.items() if not tensor.experts]
    kinds = by_kind(names, checkpoint.tied)
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
    """Choose bits; return them, and the manifest's record of the search."""
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
        names = (name for kind in kinds.values() for name in kind)
        return errors.of({n: rounded_weight(checkpoint, record, n, parts.get(n), dtype) for n in names})

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
        found[bits] = {
            kind: errors.of({name: rounded_weight(checkpoint, plan, name, None, dtype) for name in names})
            for kind, names in kinds.items()
        }
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
