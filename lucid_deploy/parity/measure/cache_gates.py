"""Gates for a cache that rounds more coarsely than the model computes.

With such a cache the schedules are no longer one function: rows of one call see each other exactly, later ones see what
was stored, and Y feeds what was rounded into every later row. So each schedule has gates of its own, from a baseline
that was fed the same way and keeps its cache in the same type.

int8 needs wide gates: 4 times its rounding error is too wide to catch a scale that is 1 % wrong. The *size* of K and Y
is therefore compared with a second reference, float64 that is fed the same way and rounds its cache to the same type.
Both round nearly the same numbers, so nearly all codes are equal. They differ by the arithmetic's error, and by codes
that this error moved across an edge. The size is the factor by which the second reference is contained in the
tensor, ``⟨tensor, rounded⟩ / ⟨rounded, rounded⟩``, of the rows that prefill wrote and of those that decode wrote, since
two graphs encode them. Errors without a preferred sign do not change a size; a wrong scale, or rounding
towards zero, does.

A size's gate is ``FACTOR`` times the largest of: the baseline's own deviation; its relative error over the root of the
number of rows (at most ``INDEPENDENT``), which is the deviation that independent errors give; and the effect of one
code of the largest magnitude, for parts so small that the baseline may have moved none.

Only rows count that could be judged by themselves: those which zeros would not pass (:mod:`.gate`). In the others a sum
cancels, and what remains comes from earlier roundings, which differ between correct implementations. If none is
left, the size is not judged, and its gate says so.

A state has no size to judge: it is kept in floating point, without scales. Its gate is the baseline's error, as ever.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lucid_deploy.cache.storage import E4M3_MAX, LEVELS
from lucid_deploy.errors import LucidError
from lucid_deploy.model.scenarios import Scenario, Schedule
from lucid_deploy.parity.measure.compare import TensorId, TensorRows, Trace
from lucid_deploy.parity.measure.gate import (
    FACTOR,
    FLOOR_UNITS,
    UNIT,
    VACUOUS,
    Comparison,
    Gate,
    compare_rows,
    derive_gates,
)
from lucid_deploy.parity.measure.metrics import zero_errors
from lucid_deploy.runtimes.session import Array, Session

Gates = dict[TensorId, Gate]
# More rows do not make a deviation smaller: errors of neighbouring rows are correlated, since Y carries them on.
# Without this bound a correct candidate took 0.6 of a gate, where 0.1 is usual.
INDEPENDENT = 32
_STEPS = {"int8": 1 / LEVELS, "fp8": 32 / E4M3_MAX}  # from the largest number to the next, as a share of it


@dataclass(frozen=True)
class SizeGate:
    """How far from 1 the size of some rows of one tensor may be.

    Attributes:
        gate: What is allowed.
        rows: Positions of the rows that count, ``(n,)``; all rows of the part where none can be judged.
    """

    gate: Gate
    rows: Array


SizeGates = dict[str, dict[TensorId, SizeGate]]  # by who wrote the rows: the names of _parts


def rounds(session: Session[Any]) -> bool:
    """Whether a session's cache rounds what it computed: rows of another type than the model's, or narrow states."""
    return session.cache_dtype != session.dtype or session.config.has_narrow_states


def refuse_dropped(session: Session[Any], tokens: int) -> None:
    """Refuse a cache that rounds and drops rows, which the comparison needs.

    Args:
        session: The baseline.
        tokens: Of the longest scenario.

    Raises:
        LucidError: There are layers with windows that are shorter.
    """
    if any(tensor.sort == "ring" and tensor.forgets(tokens) for layer in session.layout for tensor in layer):
        raise LucidError(
            f"A cache of {session.cache_dtype} in layers over a window cannot be verified yet: it drops rounded rows "
            "that the comparison needs. Export with --cache-dtype auto to verify the model."
        )


def derive(
    session: Session[Any], trace: Trace, scenario: Scenario, schedule: Schedule, reference: Trace, rounded: Trace
) -> tuple[Gates, SizeGates]:
    """Return the gates of all tensors and of sizes.

    Args:
        session: The baseline.
        trace: What it computed.
        scenario: The tokens.
        schedule: How they were fed.
        reference: What float64 computes with a cache that does not round.
        rounded: K and Y of float64 with a cache that rounds as the baseline's does, see :func:`without_logits`.

    Raises:
        LucidError, CheckFailed: As :func:`~lucid_deploy.parity.measure.gate.derive_gates`.
    """
    judged = {tensor: rows for tensor, rows in rounded.tensors.items() if not rows.is_state}
    gates = derive_gates(reference, trace, session.dtype)
    step = _STEPS[session.cache_dtype] if session.cache_dtype in _STEPS else UNIT[session.cache_dtype]
    floor = FLOOR_UNITS * UNIT[session.dtype]
    sizes: SizeGates = {}
    for part, rows in _parts(scenario, schedule).items():
        sizes[part] = {}
        for tensor, whole in judged.items():
            seen = zero_errors(reference.tensors[tensor].values, tensor.accumulated) > gates[tensor].limit  # (T,)
            chosen = rows[seen[rows]]
            least = floor if len(chosen) else VACUOUS
            chosen = chosen if len(chosen) else rows
            target, actual = whole.values[:, chosen], trace.tensors[tensor].values[:, chosen]
            own = float(np.abs(size_factors(actual, target) - 1).max())
            expected = _relative_error(actual, target) / math.sqrt(min(len(chosen), INDEPENDENT))
            limit = FACTOR * max(own, expected, _one_code(target, step))
            sizes[part][tensor] = SizeGate(Gate(max(limit, least), own), chosen)
    return gates, sizes


def without_logits(trace: Trace) -> Trace:
    """Return what is cached alone, as float32: that is what the traces of all schedules take memory for."""
    return Trace(
        {
            tensor: replace(rows, values=rows.values.astype(np.float32))
            for tensor, rows in trace.tensors.items()
            if not tensor.is_logits
        }
    )


def compare_sizes(
    trace: Trace, rounded: Trace, gates: SizeGates, scenario: Scenario, schedule: Schedule
) -> list[Comparison]:
    """Compare the sizes of K and Y with 1; a failure is noted at the first row that counts, but concerns all rows."""
    found = []
    for part in _parts(scenario, schedule):
        for tensor, size in gates[part].items():
            rows, first = size.rows, int(size.rows[0])
            factors = size_factors(trace.tensors[tensor].values[:, rows], rounded.tensors[tensor].values[:, rows])
            one, measured = (TensorRows(x, first) for x in (np.ones((1, 1, 1)), factors[:, None, None]))
            name = f"{schedule.name}, size of {part} rows"
            found.append(compare_rows(measured, one, tensor, size.gate, scenario.name, name))
    return found


def size_factors(actual: Array, rounded: Array) -> Array:
    """Return how much of the second reference each row of a batch ``(B, T, F)`` contains: 1 if all is well."""
    flat, target = (x.astype(np.float64).reshape(len(x), -1) for x in (actual, rounded))
    square = (target * target).sum(1)
    shares = np.divide((flat * target).sum(1), square, out=np.full(len(flat), np.inf), where=square > 0)
    return np.where((square == 0) & (flat == 0).all(axis=1), 1.0, shares)


def _parts(scenario: Scenario, schedule: Schedule) -> dict[str, Array]:
    """Return the positions that each graph writes, in order: padding is not counted."""
    fed = schedule.fed(scenario)
    decoded = np.ones(scenario.length, dtype=bool)
    for part in schedule.parts(len(fed.prompt)):
        decoded[part.tokens] = part.decoded
    parts = {"prefilled": np.flatnonzero(~decoded), "decoded": np.flatnonzero(decoded)}
    return {name: rows for name, rows in parts.items() if len(rows)}


def _one_code(rounded: Array, step: float) -> float:
    square = float((rounded.astype(np.float64) ** 2).sum(axis=(1, 2)).min())
    return step * float(np.abs(rounded).max()) ** 2 / square if square else 0.0


def _relative_error(actual: Array, rounded: Array) -> float:
    norm = np.linalg.norm(rounded.astype(np.float64), axis=(1, 2))
    difference = np.linalg.norm(actual.astype(np.float64) - rounded, axis=(1, 2))
    return float(np.divide(difference, norm, out=np.zeros(len(norm)), where=norm > 0).max())
