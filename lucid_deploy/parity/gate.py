"""Derive gates, the largest errors allowed, from the rounding errors of PyTorch in the same precision.

The **reference** is the model in float64; the **baseline** is the PyTorch model in the artifact's precision, run
one-shot. The baseline's error against the reference is the cost of that precision for these weights and tokens: it
depends on the conditioning of the solve, the depth of the model and the dtype's rounding. A correct candidate computes
the same formulas in another order of operations, so its error is of the same size. The error of a wrong candidate has
the size of its mistake, which does not depend on the dtype.

**The gate** of a tensor in a scenario is ``FACTOR`` times the baseline's largest relative L2 error at any position, and
at least ``FLOOR_UNITS`` units in the last place: the error at a single position may be near zero by luck. It applies to
every position of the candidate, in every schedule. All schedules compute the same function unless the cache rounds
(then see :mod:`.rounded_cache`): in float64 they agree to about 1e-13, so one reference is enough. Scenarios that may
have too few different tokens (the greedy one, short ones, one repeated token; all in a reduced run) get the widest gate
below 1, unless their own gate is 1 or more.

**Not judged.** A tensor of zeros has the error ``‖reference‖ / scale``: 1 for K, for logits and for the size factors
of :mod:`.rounded_cache`, at most 1 for Y, whose scale is the largest row so far. Where the gate is at least that, zeros
would pass, and so would the reference times any factor from 0 to 1: the position is *blind*. If every position is
blind, only values that are farther from the reference than zeros, or not finite, can fail; if none does, the
comparison is **not judged**, which is not the same as passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lucid_deploy.errors import CheckFailed, LucidError
from lucid_deploy.parity.metrics import (
    LogitMetrics,
    TensorMetrics,
    logit_metrics,
    position_errors,
    tensor_metrics,
    zero_errors,
)
from lucid_deploy.parity.record import TensorId, TensorRows, Trace
from lucid_deploy.parity.scenarios import MIN_PROMPT, Scenario, Workload
from lucid_deploy.runtimes.session import Array

# Another order of summation or fused operations change rounding errors by a small factor: 2 to 3 between correct
# implementations of one matrix product. 4 leaves room for that and not for more.
FACTOR = 4.0
# Units in the last place. Where the baseline happens to be exact (a value that is only copied), a correct candidate may
# still round once before it stores the value and once when it stores it, by at most one unit each.
FLOOR_UNITS = 2.0
# Machine epsilon by dtype: a unit in the last place of a value is at most this share of the value.
UNIT = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# A tensor of zeros has a relative error of 1, so a gate of 1 or more proves nothing.
VACUOUS = 1.0


@dataclass(frozen=True)
class Gate:
    """The largest relative L2 error allowed at any position of one tensor in one scenario."""

    limit: float
    baseline: float  # the baseline's largest error, from which the limit was derived

    @property
    def judges(self) -> bool:
        """Whether a tensor of zeros would exceed this gate."""
        return self.limit < VACUOUS


Gates = dict[TensorId, Gate]


@dataclass(frozen=True)
class Comparison:
    """The comparison of one tensor with its reference in one scenario and schedule; positions do not count padding."""

    scenario: str
    schedule: str
    tensor: TensorId
    gate: Gate
    metrics: TensorMetrics
    logits: LogitMetrics | None  # None unless the tensor is the logits
    failed_at: int | None  # first position beyond the gate
    error: float  # relative L2 error at failed_at, else at the worst position; NaN where a value is NaN
    start: int = 0  # position of the first row
    errors: Array = field(default_factory=lambda: np.zeros(0), repr=False, compare=False)  # by row, float64 (T,)
    blind_positions: int = 0  # number of positions where zeros would have passed although the reference is not zero
    against: str = ""  # kind of the other reference, such as "golden file"; empty: our own model

    @property
    def where(self) -> str:
        """Scenario and schedule as text, and the reference unless it is our own model."""
        return f"{self.scenario}, {self.schedule}" + (f", against {self.against}" if self.against else "")

    @property
    def judged(self) -> bool:
        """Whether this comparison failed, or could have failed since not all positions are blind."""
        return self.failed_at is not None or self.blind_positions < len(self.errors)

    @property
    def outcome(self) -> str:
        """``passed``, ``failed`` or ``not judged``."""
        if self.failed_at is not None:
            return "failed"
        return "passed" if self.judged else "not judged"

    @property
    def severity(self) -> float:
        """The worst error in multiples of the gate; infinite for NaN."""
        error = self.metrics.worst_position_error
        return math.inf if np.isnan(error) else error / self.gate.limit


@dataclass(frozen=True)
class Coverage:
    """Counts of comparisons and of those that could have failed."""

    total: int
    judged: int  # comparisons that failed or could have failed
    blind_positions: int  # positions of the judged comparisons where zeros would have passed
    positions: int  # all positions of the judged comparisons

    @classmethod
    def of(cls, comparisons: Sequence[Comparison]) -> Coverage:
        """Count comparisons, those that could have failed, and the positions of these."""
        judged = [item for item in comparisons if item.judged]
        blind, positions = sum(item.blind_positions for item in judged), sum(len(item.errors) for item in judged)
        return cls(len(comparisons), len(judged), blind, positions)

    @property
    def unjudged(self) -> int:
        """Number of comparisons that could not fail."""
        return self.total - self.judged


def derive_gates(reference: Trace, baseline: Trace, dtype: str) -> Gates:
    """Return the gate of every tensor of one scenario, from traces in float64 and in the artifact's ``dtype``.

    Raises LucidError if the float64 trace is not finite, CheckFailed if only the baseline's is not.
    """
    gates = {}
    for tensor, rows in reference.tensors.items():
        if not np.isfinite(rows.values).all():
            raise LucidError(f"The PyTorch model gives NaN or infinity even in float64 ({tensor}): check its weights.")
        error = float(position_errors(baseline.tensors[tensor].values, rows.values, tensor.accumulated).max())
        if not np.isfinite(error):
            raise CheckFailed(
                f"The PyTorch model gives NaN or infinity in {dtype} ({tensor}), so nothing can be compared with it: "
                "it does not fit into the range of this type. Export it in bfloat16 or float32."
            )
        gates[tensor] = Gate(max(FACTOR * error, FLOOR_UNITS * UNIT[dtype]), error)
    return gates


def widest(gates: Sequence[Gates]) -> Gates:
    """Return the widest gate of each tensor over all scenarios, the safer limit where tokens are few or alike.

    A gate of 1 or more shows that one scenario is ill-conditioned and says nothing about the others, so it is used only
    if no scenario has a smaller one.
    """
    chosen = {}
    for tensor in gates[0]:
        every = [scenario[tensor] for scenario in gates]
        chosen[tensor] = max([gate for gate in every if gate.judges] or every, key=lambda gate: gate.limit)
    return chosen


def share_gates(scenarios: Sequence[Scenario], gates: Sequence[Gates], workload: Workload) -> list[Gates]:
    """Return each scenario's gates: its own, or the widest of all where its tokens may be too few or too alike.

    The largest of few errors is a poor estimate of how large rounding errors may be. So scenarios that are few or
    short, as in a quick verification, share their gates. A scenario keeps its own gate if that is 1 or more.
    """
    shared, chosen = widest(gates), []
    for scenario, own in zip(scenarios, gates, strict=True):
        few = scenario.greedy or scenario.few_draws or scenario.length < 2 * MIN_PROMPT
        keeps = workload.has_all_sequences and not few
        chosen.append(own if keeps else {name: shared[name] if gate.judges else gate for name, gate in own.items()})
    return chosen


def compare_rows(
    actual: TensorRows, reference: TensorRows, tensor: TensorId, gate: Gate, scenario: str, schedule: str
) -> Comparison:
    """Compare a tensor's rows with the reference's at the same positions, within a gate."""
    metrics, errors = tensor_metrics(actual.values, reference.values, tensor.accumulated)
    beyond = ~(errors <= gate.limit)  # not "errors > limit": NaN must fail
    failed = int(beyond.argmax()) if beyond.any() else None
    logits = logit_metrics(actual.values, reference.values, gate.limit) if tensor.is_logits else None
    zeros = zero_errors(reference.values, tensor.accumulated)
    return Comparison(
        scenario=scenario,
        schedule=schedule,
        tensor=tensor,
        gate=gate,
        metrics=replace(metrics, worst_position=metrics.worst_position + reference.start),
        logits=logits,
        failed_at=None if failed is None else failed + reference.start,
        error=float(errors[failed]) if failed is not None else metrics.worst_position_error,
        start=reference.start,
        errors=errors,
        blind_positions=int(((zeros > 0) & (zeros <= gate.limit)).sum()),
    )


def first_failure(comparisons: Iterable[Comparison]) -> Comparison | None:
    """Return the earliest failure: by layer, then K before Y, logits last, then by position; None if none failed."""
    failed = [comparison for comparison in comparisons if comparison.failed_at is not None]
    return min(failed, key=lambda item: (item.tensor, item.failed_at), default=None)
