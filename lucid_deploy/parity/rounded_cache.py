"""Derive gates for a cache that rounds more coarsely than the model computes: for its rows, their size, and reading.

**Rows.** With such a cache the schedules compute different functions: rows of one call use each other's exact values,
later calls use the rounded ones, and Y carries their errors into every later row. So each schedule has its own gates,
from a baseline that was fed in the same way and stores its cache in the same type.

**Size.** Gates of 4 times the rounding error of int8 are too wide to catch a scale that is 1 % wrong. So the *size* of
K and Y is compared with a second reference: float64, fed in the same way, with its cache rounded to the same type. Both
round nearly the same values, so nearly all quantized codes are equal. The size is the coefficient of the tensor's
projection onto the second reference, ``⟨tensor, rounded⟩ / ⟨rounded, rounded⟩``. It is computed separately for rows
that prefill, decode and drafts wrote, since different graphs encode them. A wrong scale changes the size; errors of
random sign do not. The gate is ``FACTOR`` times the largest of the following, but not below the floor of :mod:`.gate`:
the baseline's own deviation from 1; its relative error over the root of the number of rows (at most ``INDEPENDENT``),
which is the deviation that independent errors cause; and the change if the largest element is off by one code. Only
rows where zeros would fail (:mod:`.gate`) are used; if there are none, the size is not judged. A state has no size to
judge, since it is stored in floating point without scales.

**Reading.** The rounding error of the cache hides smaller faults in reading it: keys read 1 % too small do not change
the size, since the solve normalises keys, and change scores by less than int8's rounding does. So candidate, baseline
and reference continue from the same stored rows, those of the float64 run that rounds its cache. Nothing is rounded to
the cache's type between these rows and the logits, so the gates are as narrow as without such a cache. Layers with
states start from the states of that run, recorded after the last few tokens (:data:`.record.STATES`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lucid_deploy.cache.layout import CacheTensor
from lucid_deploy.cache.storage import E4M3_MAX, LEVELS, decoded_layout
from lucid_deploy.errors import LucidError
from lucid_deploy.parity.gate import FACTOR, FLOOR_UNITS, UNIT, VACUOUS, Gate, Gates, derive_gates, widest
from lucid_deploy.parity.metrics import zero_errors
from lucid_deploy.parity.progress import Tick
from lucid_deploy.parity.record import KINDS, STATES, TensorId, TensorRows, Trace, has_states
from lucid_deploy.parity.scenarios import Scenario, Schedule
from lucid_deploy.runtimes.session import Array, Cache, Session

# At most this many rows count as having independent errors: errors of nearby rows are correlated, since Y carries them
# on. Without this bound the error of a correct candidate was 0.6 of its gate, where 0.1 is usual.
INDEPENDENT = 32
_STEPS = {"int8": 1 / LEVELS, "fp8": 32 / E4M3_MAX}  # step between the two largest codes, relative to the largest


@dataclass(frozen=True)
class SizeGate:
    """How far from 1 the coefficient of rows projected onto the second reference may be (``size_factors``)."""

    gate: Gate
    rows: Array  # positions of the rows that are used, (n,): those where zeros would fail, or all if there are none


SizeGates = dict[str, dict[TensorId, SizeGate]]  # by how the rows were written: prefilled, decoded or drafted


def rounds(session: Session[Any]) -> bool:
    """Whether a session's cache rounds: it has rows of another dtype than the model computes in, or narrow states."""
    return session.cache_dtype != session.dtype or session.config.has_narrow_states


def refuse_dropped_rows(session: Session[Any], tokens: int) -> None:
    """Raise LucidError if a layer's window is shorter than ``tokens``: it drops rounded rows that must be compared."""
    if any(tensor.sort == "ring" and tensor.is_recurrent(tokens) for layer in session.layout for tensor in layer):
        raise LucidError(
            f"A cache of {session.cache_dtype} in layers over a window cannot be verified yet: it drops rounded rows "
            "that must be compared. Export with --cache-dtype auto to verify the model."
        )


def derive_cache_gates(
    session: Session[Any], trace: Trace, scenario: Scenario, schedule: Schedule, reference: Trace, rounded: Trace
) -> tuple[Gates, SizeGates]:
    """Derive the gates of all tensors and of their sizes from the baseline ``session`` and two references.

    ``trace`` is the session's, and ``rounded`` has K and Y of float64 with a cache that rounds, both fed by
    ``schedule``; ``reference`` is the trace of float64 with a cache that does not round.
    """
    judged = {tensor: rows for tensor, rows in rounded.tensors.items() if not rows.is_state}
    gates = derive_gates(reference, trace, session.dtype)
    step = _STEPS[session.cache_dtype] if session.cache_dtype in _STEPS else UNIT[session.cache_dtype]
    floor = FLOOR_UNITS * UNIT[session.dtype]
    sizes: SizeGates = {}
    for part, rows in _written_by(scenario, schedule).items():
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
    """Return a trace in float32 without its logits, to save memory: there is one for every schedule."""
    return Trace(
        {
            tensor: replace(rows, values=rows.values.astype(np.float32))
            for tensor, rows in trace.tensors.items()
            if not tensor.is_logits
        }
    )


def size_factors(actual: Array, rounded: Array) -> Array:
    """Project each batch row ``(T, F)`` onto the second reference; return the coefficients ``(B,)``, ideally 1."""
    flat, target = (x.astype(np.float64).reshape(len(x), -1) for x in (actual, rounded))
    square = (target * target).sum(1)
    shares = np.divide((flat * target).sum(1), square, out=np.full(len(flat), np.inf), where=square > 0)
    return np.where((square == 0) & (flat == 0).all(axis=1), 1.0, shares)


def _written_by(scenario: Scenario, schedule: Schedule) -> dict[str, Array]:
    """Return the positions, padding not counted, of prefilled, decoded and drafted rows, ``(n,)`` each."""
    fed = schedule.fed(scenario)
    last = "drafted" if schedule.drafts else "decoded"
    writers = np.full(scenario.length, last, dtype=object)
    for part in schedule.parts(len(fed.prompt)):
        writers[part.tokens] = "decoded" if part.decoded else "prefilled"
    parts = {name: np.flatnonzero(writers == name) for name in ("prefilled", "decoded", "drafted")}
    return {name: rows for name, rows in parts.items() if len(rows)}


def _one_code(rounded: Array, step: float) -> float:
    """Return the change of the size factor if the element of largest magnitude is off by one quantized code."""
    square = float((rounded.astype(np.float64) ** 2).sum(axis=(1, 2)).min())
    return step * float(np.abs(rounded).max()) ** 2 / square if square else 0.0


def _relative_error(actual: Array, rounded: Array) -> float:
    norm = np.linalg.norm(rounded.astype(np.float64), axis=(1, 2))
    difference = np.linalg.norm(actual.astype(np.float64) - rounded, axis=(1, 2))
    return float(np.divide(difference, norm, out=np.zeros(len(norm)), where=norm > 0).max())


# Reading: steps from stored rows

READ_STEPS = 4  # number of decode steps, each from a new cache with stored rows
Answers = dict[str, Trace]  # traces of only the logits, by the graph that read the rows


def read_calls(session: Session[Any], scenario: Scenario) -> int:
    """Return the number of session calls in :func:`read_back`."""
    return 1 + len(_starts(session, scenario))


def _starts(session: Session[Any], scenario: Scenario) -> range:
    """Return the number of cached tokens before each decode step of :func:`read_back`."""
    prompt, forced = len(scenario.prompt), len(scenario.forced)
    if has_states(session):  # states are recorded only before each of the last few tokens
        return range(max(prompt, scenario.length - STATES + 1), scenario.length)
    return range(prompt, prompt + min(READ_STEPS, forced))


def read_back(session: Session[Any], scenario: Scenario, rounded: Trace, tick: Tick) -> Answers:
    """Decode and prefill from given cached rows; return the logits by the graph that read the rows.

    ``rounded`` has K and Y of the whole scenario and its last states, rounded to the type of the session's cache.
    Each call starts from a new cache, filled with the rows of all tokens before it.
    """
    starts, steps = _starts(session, scenario), []
    forced = scenario.forced[None, starts[0] - len(scenario.prompt) :]  # (1, S)
    for step, start in enumerate(starts):
        steps.append(session.decode(forced[:, step : step + 1], _stored(session, rounded, start)))  # (1, 1, vocab)
        tick()
    prefilled = session.prefill(forced, _stored(session, rounded, starts[0]))  # (1, 1, vocab)
    tick()
    name = TensorId(session.config.num_hidden_layers, KINDS.index("logits"))
    return {
        "decode from given rows": Trace({name: TensorRows(np.concatenate(steps, axis=1), starts[0])}),
        "prefill behind given rows": Trace({name: TensorRows(prefilled, scenario.length - 1)}),
    }


def derive_read_gates(reference: Sequence[Answers], baseline: Sequence[Answers], dtype: str) -> dict[str, Gates]:
    """Return each graph's gates for its logits from stored rows: the widest of all scenarios."""
    pairs = list(zip(reference, baseline, strict=True))
    return {way: widest([derive_gates(exact[way], found[way], dtype) for exact, found in pairs]) for way in pairs[0][0]}


def _stored(session: Session[Any], rounded: Trace, tokens: int) -> Cache[Any]:
    """Return a cache with the rows of the first ``tokens`` tokens and the states after them."""
    layers: list[tuple[Array, ...]] = [
        tuple(
            _values(rounded.tensors[TensorId.of(index, place, tensor, layer)], tensor, tokens)
            for place, tensor in enumerate(decoded_layout(layer.cache))
        )
        for index, layer in enumerate(session.layers)
    ]
    return session.cache_from_arrays(layers, np.ones((1, tokens), dtype=bool))


def _values(rows: TensorRows, tensor: CacheTensor, tokens: int) -> Array:
    """Return the state after the first ``tokens``, ``(1, …)``, or their rows as ``(1, KV, tokens, D)``."""
    if rows.is_state:
        return rows.values[:, tokens - 1 - rows.start].reshape(1, *tensor.shape)
    split = rows.values[:, :tokens].reshape(1, tokens, *tensor.shape)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3))
