"""Gates for a cache that rounds more coarsely than the model computes.

With such a cache the schedules are no longer one function: rows of one call see each other exactly, later ones see what
was stored, and Y feeds what was rounded into every later row. So each schedule has gates of its own, from a baseline
that was fed the same way and keeps its cache in the same type.

Those gates are as wide as the format is coarse: 4 times its rounding error would let a scale pass that is 1 % off. But
rounding has no preferred sign, so it leaves the *size* of a tensor alone, while a wrong scale is nothing else. The size
is the factor by which the reference is contained in the tensor, ``⟨tensor, reference⟩ / ⟨reference, reference⟩``.
Errors of independent positions move it by their relative size over the root of their number, or by what the baseline
shows; the larger of the two, times ``FACTOR``, is its gate.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lucid_deploy.parity.compare import Rows, TensorId, Tick, Trace, record
from lucid_deploy.parity.gate import FACTOR, FLOOR_UNITS, UNIT, Comparison, Gate, compare_rows, derive_gates
from lucid_deploy.parity.scenarios import Scenario, Schedule
from lucid_deploy.runtime.session import Array, Session

Gates = dict[TensorId, Gate]


def rounds(session: Session[Any]) -> bool:
    """Whether a session's cache rounds what it computed."""
    return session.cache_dtype != session.dtype


def derive(
    session: Session[Any], scenario: Scenario, schedule: Schedule, reference: Trace, tick: Tick | None
) -> tuple[Gates, Gates]:
    """Run the baseline through a scenario, fed as the schedule says; return the gates of all tensors and of sizes.

    Raises:
        LucidError, CheckFailed: As :func:`~lucid_deploy.parity.gate.derive_gates`.
    """
    trace = record(session, scenario, schedule, tick)
    gates = derive_gates(reference, trace, session.dtype)
    floor = FLOOR_UNITS * UNIT[session.dtype]
    sizes = {}
    for tensor, rows in reference.tensors.items():
        if not tensor.is_logits:
            own = float(np.abs(size_factors(trace.tensors[tensor].values, rows.values) - 1).max())
            expected = _relative_error(trace.tensors[tensor].values, rows.values) / math.sqrt(rows.values.shape[1])
            sizes[tensor] = Gate(max(FACTOR * max(own, expected), floor), own)
    return gates, sizes


def compare_sizes(trace: Trace, reference: Trace, gates: Gates, scenario: str, schedule: str) -> list[Comparison]:
    """Hold the sizes of K and Y against 1; a failure stands at position 0, since it is the whole tensor's."""
    found = []
    for tensor, gate in gates.items():
        factors = size_factors(trace.tensors[tensor].values, reference.tensors[tensor].values)
        one = Rows(np.ones((1, 1, 1)))
        found.append(compare_rows(Rows(factors[:, None, None]), one, tensor, gate, scenario, f"{schedule}, size"))
    return found


def size_factors(actual: Array, reference: Array) -> Array:
    """Return how much of the reference ``(1, T, F)`` each row of a batch ``(B, T, F)`` contains: 1 if all is well."""
    flat, target = actual.astype(np.float64).reshape(len(actual), -1), reference.astype(np.float64).reshape(-1)
    square = float(target @ target)
    if square == 0:
        return np.where((flat == 0).all(axis=1), 1.0, np.inf)
    return np.asarray(flat @ target / square)


def _relative_error(actual: Array, reference: Array) -> float:
    difference = np.linalg.norm(actual.astype(np.float64) - reference.astype(np.float64), axis=(1, 2)).max()
    norm = float(np.linalg.norm(reference.astype(np.float64)))
    return float(difference / norm) if norm else 0.0
